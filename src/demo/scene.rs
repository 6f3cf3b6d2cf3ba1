//! Who and what takes part in the story, and how they are asked.

use std::{
    fmt, fs,
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use super::{
    application::{self, Answered, Order, Outcome},
    child::{self, Conversation, Running},
    narrator::Narrator,
    network::{self, APPLICATION, UPSTREAM},
    sandbox::{DIRECTORY, Users},
    server::{self, Arrival},
    trouble::{Trouble, While},
};

/// The default of `listen`.
pub(super) const PROXY_PORT: u16 = 15001;
/// The default of `admin`.
const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15000);
/// The default of `capture.proxy_uid`.
pub(super) const PROXY_UID: u32 = 1337;
/// Far more than anything here takes; reaching it is a failure to be told.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks at a condition.
const TICK: Duration = Duration::from_millis(5);

/// Who and what takes part.
pub(super) struct Scene<'a> {
    pub(super) narrator: &'a mut Narrator,
    pub(super) users: Users,
    pub(super) application: Conversation,
    _upstream: Conversation,
    pub(super) has_v6: bool,
    pub(super) v4: SocketAddr,
    pub(super) v6: SocketAddr,
    pub(super) config: String,
    access_log: String,
    proxy_log: String,
}

/// One call, as both ends saw it.
pub(super) struct Call {
    pub(super) application: Answered,
    pub(super) server: Arrival,
}

impl<'a> Scene<'a> {
    /// Lays the wire and starts application and upstream.
    pub(super) fn set(narrator: &'a mut Narrator, users: Users) -> Result<Self, Trouble> {
        child::name_the_parts().when("preparing the stage")?;
        let mut upstream = child::converse(child::UPSTREAM).when("starting the server")?;
        let wire = "laying the wire between the two networks";
        expect(&mut upstream, &[server::IN_NAMESPACE]).when("starting the server")?;
        network::lay_wire(upstream.running.pid()).when(wire)?;
        let has_v6 = network::bring_up(APPLICATION).when(wire)?;
        upstream.say(&"the wire is laid").when(wire)?;
        let listening = [server::LISTENING, server::LISTENING_WITHOUT_V6];
        let heard = expect(&mut upstream, &listening).when("starting the server")?;
        network::await_carrier(APPLICATION).when(wire)?;
        let application = child::converse(child::APPLICATION).when("starting the application")?;
        Ok(Self {
            narrator,
            users,
            application,
            _upstream: upstream,
            has_v6: has_v6 && heard == server::LISTENING,
            v4: (UPSTREAM.v4, server::PORT).into(),
            v6: (UPSTREAM.v6, server::PORT).into(),
            config: format!("{DIRECTORY}/demo.yaml"),
            access_log: format!("{DIRECTORY}/access.log"),
            proxy_log: format!("{DIRECTORY}/proxy.log"),
        })
    }

    /// A call that has to be answered.
    pub(super) fn call(&mut self, server: SocketAddr) -> Result<Call, Trouble> {
        self.order(Order::Call(server))
    }

    pub(super) fn order(&mut self, order: Order) -> Result<Call, Trouble> {
        let outcome = self.try_order(order)?;
        let claim = "the application's call is answered by its server";
        if let Err(seen) = &outcome {
            self.narrator.claim(claim, false, seen)?;
        }
        outcome.map_err(|_| Trouble::Untrue(claim.into()))
    }

    /// What the order came to: the call, or how it failed.
    pub(super) fn try_order(&mut self, order: Order) -> Result<Result<Call, String>, Trouble> {
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

    pub(super) fn show(&self, call: &Call) {
        let (here, there) = (&call.application, &call.server);
        self.narrator.say(&format!(
            "application: my connection is {} → {}\n\
             server:      I was called from {} (my connection {})",
            here.local, here.peer, there.from, there.connection
        ));
    }

    /// Runs and shows a command that a user would type: its exit code and what it printed.
    pub(super) fn run(&self, command: &str) -> Result<(Option<i32>, String), Trouble> {
        let arguments = [command, "--config", &self.config];
        self.narrator
            .command(&format!("proxyctl {}", arguments.join(" ")));
        let (code, said) = child::run(&arguments).when("running a command")?;
        self.narrator.output(&said);
        Ok((code, said))
    }

    /// Starts `proxyctl serve`; as root, under the user that it is to have.
    pub(super) fn launch_proxy(&self) -> io::Result<Running> {
        child::start(
            &["serve", "--config", &self.config],
            (self.users == Users::Many).then_some(PROXY_UID),
            File::create(&self.access_log)?,
            File::create(&self.proxy_log)?,
        )
    }

    /// The proxy's record of the call that came from `client`.
    pub(super) fn find_in_access_log(
        &self,
        client: SocketAddr,
    ) -> Result<Option<LogLine>, Trouble> {
        let mut found = None;
        wait_until(|| {
            let log = fs::read_to_string(&self.access_log)?;
            found = log
                .lines()
                .filter_map(LogLine::parse)
                .find(|line| line.client == client);
            Ok(found.is_some())
        })
        .when("reading the proxy's access log")?;
        Ok(found)
    }

    pub(super) fn settings(&self) -> String {
        let for_the_show = "\
workers: 1                                 # one event loop, so one pool of connections
access_log: { to: stdout, format: json }   # a line for each call
";
        match self.users {
            Users::Many => for_the_show.into(),
            // The one user there is runs the application too: only a mark tells them apart.
            Users::One => format!(
                "{for_the_show}capture:\n  \
                 proxy_mark: 1337                         # tells the proxy's own connections from the\n                                           \
                 # application's, where both run as one user\n"
            ),
        }
    }

    pub(super) fn proxy_says(&self) -> String {
        fs::read_to_string(&self.proxy_log).unwrap_or_else(|error| error.to_string())
    }
}

impl Call {
    /// Whether the server saw the very connection that the application made. It could not see the
    /// same port from anyone else: this one is taken.
    pub(super) fn is_direct(&self) -> bool {
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

/// Hears one of `messages`.
pub(super) fn expect(child: &mut Conversation, messages: &[&str]) -> io::Result<String> {
    let heard = child.hear()?;
    if messages.contains(&heard.as_str()) {
        Ok(heard)
    } else {
        Err(io::Error::other(format!("it says {heard:?}")))
    }
}

/// Whether the proxy says that it is ready.
pub(super) fn is_ready() -> bool {
    application::get(ADMIN, "/ready").is_ok_and(|answer| answer.status == 200)
}

/// Looks until `condition` holds, or patience ends; tells which.
pub(super) fn wait_until(mut condition: impl FnMut() -> io::Result<bool>) -> io::Result<bool> {
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
pub(super) struct LogLine {
    pub(super) client: SocketAddr,
    /// The original destination.
    pub(super) destination: SocketAddr,
    pub(super) text: String,
}

impl LogLine {
    pub(super) fn parse(line: &str) -> Option<Self> {
        let fields: serde_json::Value = serde_json::from_str(line).ok()?;
        let address = |key| fields.get(key)?.as_str()?.parse().ok();
        Some(Self {
            client: address("client")?,
            destination: address("destination")?,
            text: line.to_owned(),
        })
    }
}
