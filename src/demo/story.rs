//! The story, step by step. What is claimed is what the code has just seen.

use std::{
    fs,
    time::{Duration, Instant},
};

use super::{
    application::Order,
    child::{self, Running},
    narrator::Narrator,
    network::{APPLICATION, UPSTREAM},
    ruleset::Ruleset,
    sandbox::Users,
    scene::{Call, PATIENCE, PROXY_PORT, Scene, expect, is_ready, wait_until},
    server,
    trouble::{Trouble, While},
};

/// How soon after kill -9 the application has to be served again.
const RECOVERY: Duration = Duration::from_secs(1);

/// Tells the story to its end or to the first claim that is not true.
///
/// # Errors
/// That claim, or what the host did not let the demo do.
pub(super) fn tell(narrator: &mut Narrator, users: Users) -> Result<(), Trouble> {
    let mut scene = Scene::set(narrator, users)?;
    scene.introduce();
    scene.call_directly()?;
    scene.meet_a_stranger()?;
    let proxy = scene.start_the_proxy()?;
    scene.capture()?;
    scene.call_through_the_proxy()?;
    scene.kill_the_proxy(proxy)?;
    scene.look_back()
}

impl Scene<'_> {
    fn introduce(&self) {
        let privilege = match self.users {
            Users::Many => {
                "You are root; the proxy will run as a user of its own, without privileges."
            }
            Users::One => {
                "You need not be root: the kernel lends its powers within these networks only."
            }
        };
        let v6 = if self.has_v6 {
            format!(
                "\n{:>27}              {}",
                APPLICATION.v6.to_string(),
                UPSTREAM.v6
            )
        } else {
            "\nThis host has no IPv6: the demo does without.".into()
        };
        self.narrator.say(&format!(
            "Two private networks on this machine, joined by a wire. Nothing outside them is touched.\n\
             {privilege}\n\n\
             application {:>15} ──────────── {} server{v6}",
            APPLICATION.v4.to_string(),
            UPSTREAM.v4,
        ));
    }

    fn call_directly(&mut self) -> Result<(), Trouble> {
        self.narrator.step("An application calls a server");
        self.narrator.say(&format!(
            "The application is process {}. It knows nothing of any proxy, and is never restarted or\n\
             reconfigured in all that follows.",
            self.application.running.pid()
        ));
        let call = self.call(self.v4)?;
        self.show(&call);
        self.narrator.claim(
            "the server saw the application's very own connection: nobody is in between",
            call.is_direct(),
            &call,
        )?;
        // Kept for step 5.
        self.order(Order::Open(self.v4))?;
        Ok(())
    }

    fn meet_a_stranger(&mut self) -> Result<(), Trouble> {
        self.narrator
            .step("The accident: redirect rules, but no proxy behind them");
        let before = Ruleset::read().when("listing the rules")?;
        let mut stranger = child::converse(child::STRANGER).when("starting the other server")?;
        expect(&mut stranger, &[server::LISTENING]).when("starting the other server")?;
        let pid = stranger.running.pid();
        self.narrator.say(&format!(
            "Such a proxy works by rules in the kernel that divert the application's connections to it.\n\
             The accident: the rules are there, and on the proxy's port, {PROXY_PORT}, listens somebody else.\n\
             Here it is process {pid}, a server that answers 404 to everything. With the rules in force,\n\
             each call of the application would get a 404 that no server it knows has sent. So the\n\
             command that loads them looks first:"
        ));
        fs::write(&self.config, self.settings()).when("writing the configuration")?;
        let (code, said) = self.run("install-rules")?;
        self.narrator.claim(
            "it refused, with exit code 1",
            code == Some(1),
            format_args!("exit code {code:?}"),
        )?;
        self.narrator.claim(
            &format!("it says who has the port: process {pid}"),
            said.contains(&pid.to_string()),
            &said,
        )?;
        let after = Ruleset::read().when("listing the rules")?;
        self.narrator.claim(
            &format!(
                "the kernel's rules are what they were: {}",
                before.summary()
            ),
            before == after,
            after.summary(),
        )?;
        let call = self.call(self.v4)?;
        self.narrator.claim(
            "the application still reaches its server",
            call.is_direct(),
            &call,
        )?;
        Ok(())
    }

    fn start_the_proxy(&mut self) -> Result<Running, Trouble> {
        self.narrator.step("The proxy starts");
        self.narrator
            .say("The other server has gone. With a user of its own, the proxy needs no configuration; this\n\
             one is for the show:");
        self.narrator.command(&format!("cat {}", self.config));
        self.narrator.output(&self.settings());
        self.narrator
            .command(&format!("proxyctl serve --config {} &", self.config));
        let starting = "starting the proxy";
        let mut proxy = self.launch_proxy().when(starting)?;
        let is_up = wait_until(|| Ok(is_ready() || proxy.has_ended()?.is_some())).when(starting)?
            && proxy.has_ended().when(starting)?.is_none();
        let log = self.proxy_says();
        self.narrator.claim(
            &format!(
                "process {} is ready on port {PROXY_PORT}{}",
                proxy.pid(),
                match self.users {
                    Users::Many => ", as a user of its own, without privileges",
                    Users::One => "",
                }
            ),
            is_up,
            format_args!("not ready; the proxy's log:\n{log}"),
        )?;
        let call = self.call(self.v4)?;
        self.narrator.claim(
            "a proxy that only runs is in nobody's way: the application's calls still go straight",
            call.is_direct(),
            &call,
        )?;
        Ok(proxy)
    }

    fn capture(&mut self) -> Result<(), Trouble> {
        self.narrator.step("Capture");
        self.narrator.say(
            "Now the same command finds the proxy. It tries the way with a probe of its own, end to end,\n\
             and only then diverts the application's new connections. The rules belong to the proxy's\n\
             process: the kernel keeps them exactly as long as that process lives.",
        );
        let (code, said) = self.run("install-rules")?;
        let log = self.proxy_says();
        self.narrator.claim(
            "every check was passed, and the command has ended with exit code 0",
            code == Some(0),
            format_args!("exit code {code:?}: {said}\nthe proxy's log:\n{log}"),
        )?;
        let rules = Ruleset::read().when("listing the rules")?;
        self.narrator.claim(
            &format!("the kernel holds {}", rules.summary()),
            !rules.is_empty(),
            rules.summary(),
        )?;
        Ok(())
    }

    fn call_through_the_proxy(&mut self) -> Result<(), Trouble> {
        self.narrator.step("The same calls, through the proxy");
        let first = self.call(self.v4)?;
        self.show(&first);
        self.narrator.claim(
            "the server saw another connection than the application's: the proxy stands in between",
            !first.is_direct(),
            &first,
        )?;
        self.narrator.claim(
            "the application noticed nothing: for it, the other end is the server",
            first.application.peer == self.v4,
            first.application.peer,
        )?;
        self.find_original_destination(&first)?;
        self.share_one_connection()?;
        if self.has_v6 {
            let call = self.call(self.v6)?;
            self.narrator
                .claim("so it is with IPv6", !call.is_direct(), &call)?;
            self.find_original_destination(&call)?;
        }
        let again = self.order(Order::Again)?;
        self.narrator.claim(
            "the connection that step 1 left open was not disturbed: it still goes straight",
            again.is_direct(),
            &again,
        )?;
        Ok(())
    }

    /// Looks for the call in the proxy's access log.
    fn find_original_destination(&mut self, call: &Call) -> Result<(), Trouble> {
        let found = self.find_in_access_log(call.application.local)?;
        let dialled = call.application.peer;
        if dialled == self.v4 {
            self.narrator.say(
                "The connection arrived at the proxy, so how does the proxy know where it was to go? The\n\
                 kernel remembers the address that was dialled, and the proxy asks for it. Its access log:",
            );
            self.narrator
                .output(found.as_ref().map_or("", |line| &line.text));
        }
        let log = self.proxy_says();
        self.narrator.claim(
            &format!("the proxy recovered the address that was dialled: {dialled}"),
            found
                .as_ref()
                .is_some_and(|line| line.destination == dialled),
            format_args!("{found:?} in its access log; its other log:\n{log}"),
        )?;
        Ok(())
    }

    fn share_one_connection(&mut self) -> Result<(), Trouble> {
        const CALLS: usize = 5;
        let calls = (0..CALLS)
            .map(|_| self.call(self.v4))
            .collect::<Result<Vec<_>, _>>()?;
        let mut clients: Vec<_> = calls.iter().map(|c| c.application.local).collect();
        clients.sort();
        clients.dedup();
        let servers: Vec<_> = calls
            .iter()
            .map(|c| (c.server.connection, c.server.request))
            .collect();
        let connection = servers[0].0;
        self.narrator.claim(
            &format!(
                "{CALLS} more calls, each on a new connection, reached the server on one: its connection {connection}"
            ),
            clients.len() == CALLS && servers.iter().all(|s| s.0 == connection),
            format_args!("(connection, request) {servers:?} from {clients:?}"),
        )?;
        Ok(())
    }

    fn kill_the_proxy(&mut self, mut proxy: Running) -> Result<(), Trouble> {
        self.narrator.step("The proxy dies");
        self.narrator.say(
            "It is killed, without a chance to clean up. The application has one connection open through\n\
             it, and goes on calling without a pause.",
        );
        self.order(Order::Open(self.v4))?;
        self.narrator.command(&format!("kill -9 {}", proxy.pid()));
        let killed = Instant::now();
        proxy.kill().when("killing the proxy")?;
        let mut broken = Vec::new();
        let mut call = None;
        while call.is_none() && killed.elapsed() < PATIENCE {
            match self.try_order(Order::Call(self.v4))? {
                Ok(answered) if answered.is_direct() => call = Some(answered),
                // Answered by the proxy within its last moments.
                Ok(_) => {}
                Err(error) => broken.push(error),
            }
        }
        let took = killed.elapsed();
        if let Some(call) = &call {
            self.show(call);
        }
        let cut = match broken.len() {
            0 => "no call failed".to_owned(),
            1 => "1 call had reached the dying proxy and was cut".to_owned(),
            n => format!("{n} calls had reached the dying proxy and were cut"),
        };
        self.narrator.claim(
            &format!(
                "{:.1} ms after the kill the application reaches its server directly; {cut}",
                took.as_secs_f64() * 1000.0
            ),
            call.is_some() && took < RECOVERY,
            format_args!("{took:?} went by, and {broken:?}"),
        )?;
        let asked = Instant::now();
        let cut = self.try_order(Order::Again)?;
        let waited = asked.elapsed();
        self.narrator.claim(
            "the connection that was open through the proxy ended with it: the application was told at once",
            cut.is_err() && waited < RECOVERY,
            match cut {
                Ok(call) => call.to_string(),
                Err(error) => format!("{error} after {waited:?}"),
            },
        )?;
        let status = proxy.wait().when("waiting for the proxy's end")?;
        let rules = Ruleset::read().when("listing the rules")?;
        self.narrator.claim(
            &format!(
                "nobody cleaned up, and the kernel holds {}",
                rules.summary()
            ),
            rules.is_empty(),
            format_args!(
                "{}, although the proxy ended with {status}",
                rules.summary()
            ),
        )?;
        Ok(())
    }

    fn look_back(&mut self) -> Result<(), Trouble> {
        self.narrator.step("What is left");
        let call = self.call(self.v4)?;
        let ended = self.application.running.has_ended();
        self.narrator.claim(
            &format!(
                "the application is still process {}, and its calls go straight, as in step 1",
                self.application.running.pid()
            ),
            ended.when("looking at the application")?.is_none() && call.is_direct(),
            &call,
        )?;
        self.narrator
            .say("Nothing else: the two networks and all files end with the demo's last process.");
        Ok(())
    }
}
