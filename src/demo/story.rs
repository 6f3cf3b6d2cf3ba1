//! The story, step by step. What is claimed is what the code has just seen.

use std::{
    fmt,
    fs::{self, File},
    io,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use super::{
    application::{Answered, Order, Outcome},
    child::{self, Conversation, Running},
    narrator::{Narrator, Untrue},
    network::{self, APPLICATION, UPSTREAM},
    ruleset::Ruleset,
    sandbox::{DIRECTORY, Privilege},
    server::{self, Arrival},
};

/// The default of `listen`.
pub(super) const PROXY_PORT: u16 = 15001;
/// The default of `capture.proxy_uid`.
const PROXY_UID: u32 = 1337;
/// Far more than anything here takes; reaching it is a failure to be told.
const PATIENCE: Duration = Duration::from_secs(10);
/// How soon after kill -9 the application has to be served again.
const RECOVERY: Duration = Duration::from_secs(1);
/// Between two looks at a condition.
const TICK: Duration = Duration::from_millis(5);

/// Why the story ended early.
#[derive(Debug)]
pub(super) enum Trouble {
    Untrue(String),
    Io {
        doing: &'static str,
        error: io::Error,
    },
}

impl From<Untrue> for Trouble {
    fn from(Untrue(claim): Untrue) -> Self {
        Self::Untrue(claim)
    }
}

/// Names what was being done when an error came.
trait While<T> {
    fn when(self, doing: &'static str) -> Result<T, Trouble>;
}

impl<T> While<T> for io::Result<T> {
    fn when(self, doing: &'static str) -> Result<T, Trouble> {
        self.map_err(|error| Trouble::Io { doing, error })
    }
}

/// Tells the story to its end or to the first claim that is not true.
///
/// # Errors
/// That claim, or what the host did not let the demo do.
pub(super) fn tell(narrator: &mut Narrator, privilege: Privilege) -> Result<(), Trouble> {
    let mut scene = Scene::set(narrator, privilege)?;
    scene.call_directly()?;
    scene.meet_a_stranger()?;
    let proxy = scene.start_the_proxy()?;
    scene.capture()?;
    scene.call_through_the_proxy()?;
    scene.kill_the_proxy(proxy)?;
    scene.look_back()
}

/// Who and what takes part.
struct Scene<'a> {
    narrator: &'a mut Narrator,
    privilege: Privilege,
    application: Conversation,
    _upstream: Conversation,
    has_v6: bool,
    v4: SocketAddr,
    v6: SocketAddr,
    config: String,
    access_log: String,
    proxy_log: String,
}

impl<'a> Scene<'a> {
    /// Lays the wire and starts application and upstream.
    fn set(narrator: &'a mut Narrator, privilege: Privilege) -> Result<Self, Trouble> {
        let mut upstream = child::converse("upstream").when("starting the server")?;
        let wire = "laying the wire between the two networks";
        expect(&mut upstream, &[server::IN_NAMESPACE]).when("starting the server")?;
        network::lay_wire(upstream.running.pid()).when(wire)?;
        let has_v6 = network::bring_up(APPLICATION).when(wire)?;
        upstream.say(&"the wire is laid").when(wire)?;
        let listening = [server::LISTENING, server::LISTENING_WITHOUT_V6];
        let heard = expect(&mut upstream, &listening).when("starting the server")?;
        let application = child::converse("application").when("starting the application")?;
        let scene = Self {
            narrator,
            privilege,
            application,
            _upstream: upstream,
            has_v6: has_v6 && heard == server::LISTENING,
            v4: (UPSTREAM.v4, server::PORT).into(),
            v6: (UPSTREAM.v6, server::PORT).into(),
            config: format!("{DIRECTORY}/demo.yaml"),
            access_log: format!("{DIRECTORY}/access.log"),
            proxy_log: format!("{DIRECTORY}/proxy.log"),
        };
        scene.introduce();
        Ok(scene)
    }

    fn introduce(&self) {
        let privilege = match self.privilege {
            Privilege::Root => {
                "You are root; the proxy will run as a user of its own, without privileges."
            }
            Privilege::UserNamespace => {
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
        let mut stranger = child::converse("stranger").when("starting the other server")?;
        expect(&mut stranger, &[server::LISTENING]).when("starting the other server")?;
        let pid = stranger.running.pid();
        self.narrator.say(&format!(
            "On the proxy's port, {PROXY_PORT}, some other server happens to listen: process {pid}, which answers\n\
             404 to everything. Were the application's connections redirected there now, each of its\n\
             calls would fail with a 404 that no server it knows has sent. So the command that turns\n\
             capture on refuses:"
        ));
        fs::write(&self.config, self.settings()).when("writing the configuration")?;
        let (code, said) = self.run(&["install-rules", "--config", &self.config.clone()])?;
        self.narrator.claim(
            &format!("it refused, with exit code {}", code.unwrap_or(-1)),
            code.is_some_and(|c| c != 0),
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
            .say("The other server has gone. The proxy needs no configuration; this one is for the show:");
        self.narrator.command(&format!("cat {}", self.config));
        self.narrator.output(&self.settings());
        let arguments = ["serve", "--config", &self.config];
        self.narrator
            .command(&format!("proxyctl {} &", arguments.join(" ")));
        let starting = "starting the proxy";
        let uid = (self.privilege == Privilege::Root).then_some(PROXY_UID);
        let mut proxy = child::start(
            &arguments,
            uid,
            File::create(&self.access_log).when(starting)?,
            File::create(&self.proxy_log).when(starting)?,
        )
        .when(starting)?;
        let is_up = wait_until(|| Ok(listens() || proxy.has_ended()?.is_some())).when(starting)?
            && proxy.has_ended().when(starting)?.is_none();
        let log = self.proxy_says();
        self.narrator.claim(
            &format!(
                "process {} listens on port {PROXY_PORT}{}",
                proxy.pid(),
                match uid {
                    Some(uid) => format!(", as user {uid}, without privileges"),
                    None => String::new(),
                }
            ),
            is_up,
            format_args!("no listener; the proxy's log:\n{log}"),
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
            "New outbound connections are to lead to the proxy. First the command tries the way with a\n\
             probe of its own, end to end. The rules that it then loads belong to the proxy process: the\n\
             kernel keeps them exactly as long as that process lives.",
        );
        let (code, said) = self.run(&["install-rules", "--config", &self.config.clone()])?;
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
        let mut found = None;
        wait_until(|| {
            let log = fs::read_to_string(&self.access_log)?;
            found = log
                .lines()
                .filter_map(LogLine::parse)
                .find(|line| line.client == call.application.local);
            Ok(found.is_some())
        })
        .when("reading the proxy's access log")?;
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
            "No chance to clean up: it is killed in the middle of its work. The application goes on\n\
             calling, without a pause.",
        );
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

/// One call, as both ends saw it.
struct Call {
    application: Answered,
    server: Arrival,
}

impl Call {
    /// Whether the server saw the very connection that the application made. It could not see the
    /// same port from anyone else: this one is taken.
    fn is_direct(&self) -> bool {
        self.server.from == self.application.local
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the application called from {}, the server was called from {}",
            self.application.local, self.server.from
        )
    }
}

impl Scene<'_> {
    /// A call that has to be answered.
    fn call(&mut self, server: SocketAddr) -> Result<Call, Trouble> {
        self.order(Order::Call(server))
    }

    fn order(&mut self, order: Order) -> Result<Call, Trouble> {
        let outcome = self.try_order(order)?;
        let claim = "the application's call is answered by its server";
        if let Err(seen) = &outcome {
            self.narrator.claim(claim, false, seen)?;
        }
        outcome.map_err(|_| Trouble::Untrue(claim.into()))
    }

    /// What the order came to: the call, or how it failed.
    fn try_order(&mut self, order: Order) -> Result<Result<Call, String>, Trouble> {
        let ordering = "talking with the application";
        self.application.say(&order).when(ordering)?;
        let outcome = self.application.hear().when(ordering)?;
        let outcome = serde_json::from_str(&outcome)
            .map_err(io::Error::from)
            .when(ordering)?;
        Ok(match outcome {
            Outcome::Failed(error) => Err(error),
            Outcome::Answered(application) => match serde_json::from_str(&application.body) {
                Ok(server) if application.status == 200 => Ok(Call {
                    application,
                    server,
                }),
                _ => Err(format!(
                    "answered {} {:?}",
                    application.status, application.body
                )),
            },
        })
    }

    fn show(&self, call: &Call) {
        let (here, there) = (&call.application, &call.server);
        self.narrator.say(&format!(
            "application: my connection is {} → {}\n\
             server:      I was called from {} (my connection {})",
            here.local, here.peer, there.from, there.connection
        ));
    }

    /// Runs and shows a command that a user would type: its exit code and what it printed.
    fn run(&self, arguments: &[&str]) -> Result<(Option<i32>, String), Trouble> {
        self.narrator
            .command(&format!("proxyctl {}", arguments.join(" ")));
        let (code, said) = child::run(arguments).when("running a command")?;
        self.narrator.output(&said);
        Ok((code, said))
    }

    fn settings(&self) -> String {
        let for_the_show = "\
workers: 1                                 # one event loop, so one pool of connections
access_log: { to: stdout, format: json }   # a line for each call
";
        match self.privilege {
            Privilege::Root => for_the_show.into(),
            // The one user there is runs the application too: only a mark tells them apart.
            Privilege::UserNamespace => format!(
                "{for_the_show}capture:\n  \
                 proxy_mark: 1337                         # tells the proxy's own connections from the\n                                           \
                 # application's, where both run as one user\n"
            ),
        }
    }

    fn proxy_says(&self) -> String {
        fs::read_to_string(&self.proxy_log).unwrap_or_else(|error| error.to_string())
    }
}

/// Hears one of `messages`.
fn expect(child: &mut Conversation, messages: &[&str]) -> io::Result<String> {
    let heard = child.hear()?;
    if messages.contains(&heard.as_str()) {
        Ok(heard)
    } else {
        Err(io::Error::other(format!("it says {heard:?}")))
    }
}

/// Whether anyone takes connections on the proxy's port.
fn listens() -> bool {
    TcpStream::connect((Ipv4Addr::LOCALHOST, PROXY_PORT)).is_ok()
}

/// Looks until `condition` holds, or patience ends; tells which.
fn wait_until(mut condition: impl FnMut() -> io::Result<bool>) -> io::Result<bool> {
    let started = Instant::now();
    while !condition()? {
        if started.elapsed() > PATIENCE {
            return Ok(false);
        }
        thread::sleep(TICK);
    }
    Ok(true)
}

/// What the demo reads of a line of the proxy's access log.
#[derive(Debug)]
struct LogLine {
    client: SocketAddr,
    /// The original destination.
    destination: SocketAddr,
    text: String,
}

impl LogLine {
    fn parse(line: &str) -> Option<Self> {
        let fields: serde_json::Value = serde_json::from_str(line).ok()?;
        let address = |key| fields.get(key)?.as_str()?.parse().ok();
        Some(Self {
            client: address("client")?,
            destination: address("destination")?,
            text: line.to_owned(),
        })
    }
}
