use std::fs;

use tokio::task::LocalSet;

use super::*;

const DEADLINE: Duration = Duration::from_secs(10);

fn settings(yaml: &str) -> Settings {
    let text = format!("clusters:\n{yaml}");
    let parsed = outrigger_config::parse(&text).expect("good settings");
    parsed.clusters.into_iter().next().expect("a cluster")
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(DEADLINE, waiting).await.expect(what);
}

fn addresses(cluster: &Cluster) -> Vec<String> {
    let all = cluster.endpoints();
    all.iter().map(|e| e.address.to_string()).collect()
}

#[tokio::test]
async fn a_reload_keeps_what_did_not_change_and_ends_what_is_gone() {
    LocalSet::new()
        .run_until(async {
            let clusters = Arc::new(Clusters::default());
            let mut manager = Manager::new(clusters.clone(), 1);
            let apply = |manager: &mut Manager, yaml: &[&str]| {
                let wanted: Vec<_> = yaml.iter().map(|y| settings(y).into()).collect();
                manager.apply(&wanted, None, &Locality::default(), Instant::now());
            };
            let a = "  - name: a\n    endpoints: [{ address: '192.0.2.1:80' }]\n";
            let b = "  - name: b\n    endpoints: [{ address: '192.0.2.2:80' }]\n";
            apply(&mut manager, &[a, b]);
            let first = clusters.find("a").expect("a");
            let endpoint = first.endpoints()[0].clone();
            apply(
                &mut manager,
                &[&a.replace("name: a", "name: a\n    load_balancer: random")],
            );
            let same = clusters.find("a").expect("a");
            assert!(Arc::ptr_eq(&first, &same));
            assert!(Arc::ptr_eq(&endpoint, &same.endpoints()[0]));
            assert!(clusters.all().iter().all(|c| *c.name != *"b"));
            assert!(clusters.find("b").is_some(), "a request of before may ask");
            manager.forget_gone();
            assert!(clusters.find("b").is_none());
            apply(
                &mut manager,
                &["  - name: a\n    endpoints: [{ address: '192.0.2.9:80' }]\n"],
            );
            eventually("the new endpoint", || addresses(&same) == ["192.0.2.9:80"]).await;
        })
        .await;
}

#[tokio::test]
async fn a_change_of_the_endpoint_file_takes_effect() {
    LocalSet::new()
        .run_until(async {
            let directory =
                std::env::temp_dir().join(format!("outrigger-manager-{}", std::process::id()));
            fs::create_dir_all(&directory).expect("a directory");
            let (path, next) = (directory.join("e.yaml"), directory.join("next"));
            let replace = |text: &str| {
                fs::write(&next, text).expect("written");
                fs::rename(&next, &path).expect("renamed");
            };
            replace("- address: 192.0.2.1:80\n");
            let clusters = Arc::new(Clusters::default());
            let mut manager = Manager::new(clusters.clone(), 1);
            let wanted = settings(&format!(
                "  - name: f\n    file: {{ path: {} }}\n",
                path.display()
            ));
            manager.apply(&[wanted.into()], None, &Locality::default(), Instant::now());
            let cluster = clusters.find("f").expect("f");
            eventually("the first", || addresses(&cluster) == ["192.0.2.1:80"]).await;
            replace("- address: 192.0.2.2:80\n");
            eventually("the second", || addresses(&cluster) == ["192.0.2.2:80"]).await;
            fs::remove_dir_all(&directory).expect("removed");
        })
        .await;
}
