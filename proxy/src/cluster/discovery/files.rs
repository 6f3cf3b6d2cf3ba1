//! The endpoint files of all clusters, watched through one inotify instance.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io,
    path::Path,
    rc::Rc,
};

use tokio::{sync::Notify, task::AbortHandle};

use crate::file_watch::Watch;

/// One thread's; the watch begins with the first file.
#[derive(Debug, Default)]
pub(in crate::cluster) struct Files {
    watching: RefCell<Option<Watching>>,
    next: Cell<u64>,
    followed: Rc<RefCell<HashMap<u64, Rc<Notify>>>>,
}

#[derive(Debug)]
struct Watching {
    watch: Rc<Watch<u64>>,
    task: AbortHandle,
}

/// One file's place among them; dropping it gives it up.
#[derive(Debug)]
pub(super) struct Followed {
    files: Rc<Files>,
    watch: Rc<Watch<u64>>,
    number: u64,
    changed: Rc<Notify>,
}

impl Files {
    pub(super) fn follow(self: &Rc<Self>, path: &Path) -> io::Result<Followed> {
        let watch = self.watch()?;
        let number = self.next.get();
        self.next.set(number + 1);
        let followed = Followed {
            files: self.clone(),
            changed: Rc::default(),
            watch,
            number,
        };
        let mut all = self.followed.borrow_mut();
        all.insert(number, followed.changed.clone());
        drop(all);
        followed.watch.follow(number, path)?;
        Ok(followed)
    }

    fn watch(&self) -> io::Result<Rc<Watch<u64>>> {
        let mut watching = self.watching.borrow_mut();
        if let Some(watching) = watching.as_ref().filter(|w| !w.task.is_finished()) {
            return Ok(watching.watch.clone());
        }
        let watch = Rc::new(Watch::new()?);
        let task = tokio::task::spawn_local(tell(watch.clone(), self.followed.clone()));
        *watching = Some(Watching {
            watch: watch.clone(),
            task: task.abort_handle(),
        });
        Ok(watch)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        if let Some(watching) = self.watching.get_mut() {
            watching.task.abort();
        }
    }
}

impl Followed {
    /// Returns when the file may have changed; a change before the call counts.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Links on the way to the file may lead elsewhere now.
    pub(super) fn follow_again(&self, path: &Path) -> io::Result<()> {
        self.watch.follow(self.number, path)
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.watch.forget(self.number);
        self.files.followed.borrow_mut().remove(&self.number);
    }
}

async fn tell(watch: Rc<Watch<u64>>, followed: Rc<RefCell<HashMap<u64, Rc<Notify>>>>) {
    loop {
        match watch.changed().await {
            Ok(changed) => {
                let followed = followed.borrow();
                for number in changed {
                    if let Some(file) = followed.get(&number) {
                        file.notify_one();
                    }
                }
            }
            Err(error) => {
                tracing::error!(%error, "endpoint files are watched no more; a reload watches those of new clusters again");
                return;
            }
        }
    }
}
