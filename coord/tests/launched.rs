//! Jobs whose processes are started by a launcher, over TCP: the real coordinator, a real launcher child, real processes.
//! The launcher is a line of shell, and all nodes are addresses of this machine.

mod common;

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::bed::{Bed, Watcher, lives, signal};
use common::process::{HOST, NUMBER, SIZE};
use coord::event::{Event, NodeState};
use coord::launch::hosts::OwnEnvironment;
use coord::launch::{Request, resolve};
use coord::token::Token;
use coord::{Every, Plan, client, record};
use nix::sys::signal::Signal;
use protocol::control::{
    CONTROL_VERSION, Caller, Directive, Hello, ProgramIdentity, Request as Question, Response,
};
use protocol::frame::{Decoder, encode};
use protocol::ids::{Incarnation, Process};
use protocol::recovery::End;
use store::{CheckpointState, JobStore};
use wire::Address;

/// No test: what the tests here run as the processes of their jobs.
#[test]
fn process_of_the_job() {
    if std::env::var_os(protocol::control::environment::CONTROL).is_some() {
        common::process::run();
    }
}

/// Starts a process for each number, and waits for them.
fn line() -> String {
    format!(
        "for i in $(seq 0 $(({{processes}} - 1))); do {NUMBER}=$i {SIZE}={{processes}} {{program}} & done; wait"
    )
}

/// Has the processes of a job started by this line, on nodes with two slots each.
fn launched(plan: &mut Plan, line: &str, nodes: usize, spare_nodes: u32) {
    let hosts: String = (1..=nodes)
        .map(|node| format!("127.0.0.{node} slots=2\n"))
        .collect();
    let hostfile = plan.program.directory.join("hosts");
    std::fs::write(&hostfile, hosts).unwrap();
    plan.request = Request {
        launch: Some(line.to_owned()),
        hostfile: Some(hostfile),
        spare_nodes,
        ..Request::default()
    };
    plan.launch = resolve(&plan.request, plan.processes, &OwnEnvironment).unwrap();
    plan.heartbeat_timeout = Duration::from_secs(2);
}

/// The pids of the present start, as its processes tell them.
#[derive(Default)]
struct Pids(Vec<u32>);

impl Pids {
    fn note(&mut self, event: &Event) {
        match event {
            Event::Start { .. } => self.0.clear(),
            Event::Connected { process, pid, .. } => {
                let process = *process as usize;
                self.0.resize(self.0.len().max(process + 1), 0);
                self.0[process] = *pid;
            }
            _ => {}
        }
    }
}

fn is_committed(event: &Event) -> bool {
    matches!(event, Event::Committed(_))
}

/// Sends a signal to these processes when the first checkpoint is there.
fn at_first_checkpoint(sent: Signal, processes: &'static [usize]) -> Watcher<'static> {
    let (mut pids, mut done) = (Pids::default(), false);
    Watcher::acting(move |event, _| {
        pids.note(event);
        if is_committed(event) && !done {
            done = true;
            for &process in processes {
                signal(pids.0[process], sent);
            }
        }
    })
}

fn excluded(watcher: &Watcher<'_>) -> Vec<String> {
    let excluded = watcher.events.iter().filter_map(|event| match event {
        Event::Node {
            node,
            state: NodeState::Excluded,
            ..
        } => Some(node.clone()),
        _ => None,
    });
    excluded.collect()
}

/// The nodes of each start, and how many processes were on each.
fn layouts(watcher: &Watcher<'_>) -> Vec<Vec<(String, u32)>> {
    let starts = watcher.events.iter().filter_map(|event| match event {
        Event::Start { nodes, .. } => Some(
            nodes
                .iter()
                .map(|share| (share.node.clone(), share.processes))
                .collect(),
        ),
        _ => None,
    });
    starts.collect()
}

fn share(node: u32, processes: u32) -> (String, u32) {
    (format!("127.0.0.{node}"), processes)
}

#[test]
fn a_job_runs_to_its_end_through_a_launcher() {
    let mut bed = Bed::new(4, 4, 200, "good");
    launched(&mut bed.plan, &line(), 2, 0);
    let mut watcher = Watcher::new();
    let outcome = bed.run(&mut watcher);
    assert_eq!(outcome.end, End::Complete, "{:#?}", watcher.events);
    assert_eq!(outcome.restarts, 0);
    assert!(watcher.count(is_committed) >= 2);
    assert_eq!(layouts(&watcher), [[share(1, 2), share(2, 2)]]);
    assert!(watcher.told("host-of-the-test"));
    assert!(!watcher.told("in an order of its own"));
    assert!(bed.store().read_control().unwrap().is_none());
}

#[test]
fn a_killed_process_brings_a_restart_on_the_same_nodes() {
    let mut bed = Bed::new(4, 4, 300, "good");
    launched(&mut bed.plan, &line(), 2, 0);
    let mut watcher = at_first_checkpoint(Signal::SIGKILL, &[1]);
    let outcome = bed.run(&mut watcher);
    assert_eq!(outcome.end, End::Complete, "{:#?}", watcher.events);
    assert_eq!(outcome.restarts, 1);
    assert_eq!(excluded(&watcher), [""; 0]);
    for rank in 0..4 {
        let beginnings = bed.beginnings(rank);
        assert!(beginnings.len() == 2 && beginnings[1] > 0, "{beginnings:?}");
    }
}

#[test]
fn a_node_whose_processes_are_all_gone_at_once_is_replaced_by_the_spare_one() {
    let mut bed = Bed::new(4, 4, 300, "good");
    launched(&mut bed.plan, &line(), 3, 1);
    let mut watcher = at_first_checkpoint(Signal::SIGKILL, &[0, 1]);
    let outcome = bed.run(&mut watcher);
    assert_eq!(outcome.end, End::Complete, "{:#?}", watcher.events);
    assert_eq!(excluded(&watcher), ["127.0.0.1"]);
    assert_eq!(
        layouts(&watcher),
        [[share(1, 2), share(2, 2)], [share(2, 2), share(3, 2)]]
    );
}

#[test]
fn without_a_spare_node_ranks_share_the_processes_that_are_left() {
    let mut bed = Bed::new(4, 4, 300, "good");
    launched(&mut bed.plan, &line(), 2, 0);
    let mut watcher = at_first_checkpoint(Signal::SIGKILL, &[2, 3]);
    let outcome = bed.run(&mut watcher);
    assert_eq!(outcome.end, End::Complete, "{:#?}", watcher.events);
    assert_eq!(
        layouts(&watcher),
        [vec![share(1, 2), share(2, 2)], vec![share(1, 2)]]
    );
    for rank in 0..4 {
        assert_eq!(bed.beginnings(rank).len(), 2);
    }
}

#[test]
fn with_fewer_nodes_than_are_wanted_the_job_stops_and_can_be_gone_on_with() {
    let mut bed = Bed::new(4, 4, 300, "good");
    launched(&mut bed.plan, &line(), 2, 0);
    bed.plan.launch.as_mut().unwrap().min_nodes = 2;
    let mut watcher = at_first_checkpoint(Signal::SIGKILL, &[2, 3]);
    let outcome = bed.run(&mut watcher);
    assert!(matches!(outcome.end, End::NodesUsedUp { .. }));
    assert_eq!(outcome.code(), 75);
    assert!(
        outcome.message().contains("127.0.0.2"),
        "{}",
        outcome.message()
    );
    // Now with one node.
    launched(&mut bed.plan, &line(), 1, 0);
    assert_eq!(bed.restart(&mut Watcher::new()).end, End::Complete);
}

#[test]
fn a_process_that_falls_silent_costs_its_node() {
    let mut bed = Bed::new(4, 4, 300, "good");
    launched(&mut bed.plan, &line(), 2, 0);
    let mut watcher = at_first_checkpoint(Signal::SIGSTOP, &[3]);
    let outcome = bed.run(&mut watcher);
    assert_eq!(outcome.end, End::Complete, "{:#?}", watcher.events);
    assert!(watcher.told("gave no sign of life"));
    assert_eq!(excluded(&watcher), ["127.0.0.2"]);
}

/// Starts processes on hosts that are named by a line of shell, which finds the list of hosts as `$@`.
fn line_on(host: &str) -> String {
    format!(
        "set -- $(echo {{hosts}} | tr , ' '); for i in $(seq 0 $(({{processes}} - 1))); do {HOST}={host} {NUMBER}=$i {SIZE}={{processes}} {{program}} & done; wait"
    )
}

#[test]
fn the_node_that_a_silent_process_is_on_is_excluded_whatever_order_the_launcher_has() {
    let mut bed = Bed::new(4, 4, 300, "good");
    // The last host gets the first process.
    let line = line_on("$(eval echo \\${$(($# - $i))})");
    launched(&mut bed.plan, &line, 2, 0);
    let mut watcher = at_first_checkpoint(Signal::SIGSTOP, &[0]);
    let outcome = bed.run(&mut watcher);
    assert_eq!(outcome.end, End::Complete, "{:#?}", watcher.events);
    assert_eq!(excluded(&watcher), ["127.0.0.2"]);
    let warned = watcher.events.iter().filter(
        |event| matches!(event, Event::Warning { text } if text.contains("in an order of its own")),
    );
    assert_eq!(warned.count(), 1, "{:#?}", watcher.events);
}

#[test]
fn a_launcher_that_uses_an_excluded_node_is_an_error_that_says_so() {
    let mut bed = Bed::new(4, 4, 300, "good");
    let line = line_on("127.0.0.$(($i % 2 + 1))");
    launched(&mut bed.plan, &line, 2, 0);
    let mut watcher = at_first_checkpoint(Signal::SIGSTOP, &[1]);
    let outcome = bed.run(&mut watcher);
    assert_eq!(excluded(&watcher), ["127.0.0.2"]);
    let End::CannotStart { reason } = &outcome.end else {
        panic!("{outcome:?}");
    };
    assert!(reason.contains("on 127.0.0.2, which is excluded"));
    assert!(reason.contains("127.0.0.1 was asked for") && reason.contains("{hosts}"));
}

#[test]
fn what_the_launcher_says_when_it_fails_is_passed_on() {
    let mut bed = Bed::new(2, 2, 50, "good");
    let line = "echo 'no route to node3' >&2; exit 3; true {program}";
    launched(&mut bed.plan, line, 1, 0);
    let outcome = bed.run(&mut Watcher::new());
    let End::CannotStart { reason } = &outcome.end else {
        panic!("{outcome:?}");
    };
    assert!(reason.contains("exited with code 3") && reason.contains("no route to node3"));
    assert_eq!(outcome.code(), 64);
}

#[test]
fn a_launcher_that_exits_with_zero_has_proved_nothing() {
    let mut bed = Bed::new(2, 2, 50, "good");
    launched(&mut bed.plan, "true {program}", 1, 0);
    let outcome = bed.run(&mut Watcher::new());
    assert!(
        matches!(outcome.end, End::CannotStart { .. }),
        "{outcome:?}"
    );

    // It may also go away while its processes run: then they are all that counts.
    let mut bed = Bed::new(2, 2, 100, "good");
    let line = format!("({}) & sleep 0.3", line());
    launched(&mut bed.plan, &line, 1, 0);
    let outcome = bed.run(&mut Watcher::new());
    assert_eq!(outcome.end, End::Complete);
    for rank in 0..2 {
        assert!(!bed.beginnings(rank).is_empty());
    }
}

#[test]
fn processes_that_do_not_find_each_other_are_an_error_that_says_so() {
    let mut bed = Bed::new(2, 2, 50, "good");
    let line = format!("{NUMBER}=0 {SIZE}=1 {{program}} & {NUMBER}=0 {SIZE}=1 {{program}}; wait");
    launched(&mut bed.plan, &line, 1, 0);
    let outcome = bed.run(&mut Watcher::new());
    assert!(
        outcome.message().contains("MPI of this launcher"),
        "{outcome:?}"
    );
    assert_eq!(outcome.code(), 64);
}

#[test]
fn a_node_that_can_not_be_reached_is_named_at_once() {
    let mut bed = Bed::new(2, 2, 50, "good");
    launched(&mut bed.plan, &line(), 1, 0);
    let launch = bed.plan.launch.as_mut().unwrap();
    launch.nodes[0].name = "node-of-no-name".to_owned();
    let script = "echo 'No route to host' >&2; exit 255";
    let agent = ["sh", "-c", script].map(str::to_owned);
    launch.check = coord::launch::check::Way::Agent(agent.to_vec());
    let outcome = bed.run(&mut Watcher::new());
    let message = outcome.message();
    assert!(message.contains("node-of-no-name") && message.contains("No route to host"));
    assert_eq!(outcome.code(), 64);
}

/// Says hello to a job as a process of it would, and gives the answer.
fn call(address: &Address, token: [u8; 32]) -> Directive {
    let mut stream = address.connect().unwrap();
    let hello = Hello {
        version: CONTROL_VERSION,
        token,
        caller: Caller::Process {
            process: Process(0),
            processes: 2,
            pid: 1,
            host: "elsewhere".to_owned(),
            identity: ProgramIdentity::default(),
        },
    };
    let mut bytes = Vec::new();
    encode(&hello, &mut bytes).unwrap();
    stream.write_all(&bytes).unwrap();
    let mut decoder = Decoder::new();
    let mut piece = [0; 4096];
    loop {
        if let Some(directive) = decoder.next().unwrap() {
            return directive;
        }
        let count = stream.read(&mut piece).unwrap();
        assert!(count > 0, "closed without a word");
        decoder.feed(&piece[..count]);
    }
}

#[test]
fn a_wrong_token_is_refused_and_commands_are_answered_over_tcp() {
    let mut bed = Bed::new(2, 2, 600, "good");
    bed.plan.every = Every::Off;
    launched(&mut bed.plan, &line(), 1, 0);
    let path = bed.plan.store.clone();
    let mut asking = None;
    let mut watcher = Watcher::acting(|event, _| {
        if let Event::Go { .. } = event {
            let control = JobStore::open(&path)
                .unwrap()
                .read_control()
                .unwrap()
                .unwrap();
            asking = Some(std::thread::spawn(move || {
                assert!(
                    control.address.starts_with("tcp:127.0.0.1:"),
                    "{}",
                    control.address
                );
                let address: Address = control.address.parse().unwrap();
                for token in [[0; 32], control.token] {
                    // The token of commands is not that of processes.
                    let answer = call(&address, token);
                    assert!(matches!(answer, Directive::Refused { .. }), "{answer:?}");
                }
                let token = Token::from_bytes(control.token);
                let status = client::ask(&address, &token, &Question::Status, None).unwrap();
                let taken = client::ask(&address, &token, &Question::Checkpoint, None).unwrap();
                (status, taken)
            }));
        }
    });
    let outcome = bed.run(&mut watcher);
    assert_eq!(outcome.end, End::Complete);
    drop(watcher);
    let (status, taken) = asking.unwrap().join().unwrap();
    let Response::Status(status) = status else {
        panic!("{status:?}");
    };
    assert_eq!(status.hosts, ["host-of-the-test"; 2]);
    assert!(status.pids.iter().all(|&pid| pid > 0));
    assert!(matches!(taken, Response::Committed { .. }), "{taken:?}");
}

/// No test: a coordinator in a process of its own, for a store that is there.
#[test]
fn coordinator_of_the_job() {
    let Ok(path) = std::env::var("TEST_COORDINATE") else {
        return;
    };
    let store = JobStore::open_locked(&path).unwrap();
    let defaults = record::Defaults {
        max_restarts: 3,
        heartbeat_timeout: Duration::from_secs(1),
    };
    let mut plan = record::recall(std::path::Path::new(&path), store.job(), &defaults);
    plan.launch = resolve(&plan.request, plan.processes, &OwnEnvironment).unwrap();
    let outcome = coord::run(&plan, store, &mut Watcher::new()).unwrap();
    println!("outcome: {}", outcome.message());
    std::process::exit(outcome.code());
}

#[test]
fn a_coordinator_that_hangs_is_replaced_and_publishes_nothing_when_it_goes_on() {
    is_replaced(5000);
}

#[test]
fn a_coordinator_that_hangs_is_replaced_also_when_its_ranks_have_finished_meanwhile() {
    is_replaced(1500);
}

/// Stops a coordinator, has a job of so many steps go on under another, and lets the first one go on.
fn is_replaced(steps: u64) {
    let mut bed = Bed::new(2, 2, steps, "good");
    launched(&mut bed.plan, &line(), 1, 0);
    let path = bed.plan.store.clone();
    drop(JobStore::create(&path, record::new_job(&bed.plan).unwrap()).unwrap());
    let hung = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "coordinator_of_the_job", "--nocapture"])
        .env("TEST_COORDINATE", &path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let usable = || JobStore::open(&path).unwrap().newest_usable().unwrap();
    while usable().is_none() {
        std::thread::sleep(Duration::from_millis(5));
    }
    signal(hung.id(), Signal::SIGSTOP);
    assert!(JobStore::open_locked(&path).is_err(), "it keeps the lock");

    let (store, holder) = JobStore::open_taking_over(&path).unwrap();
    assert!(holder.is_some());
    bed.plan.took_over = true;
    let mut pids = Pids::default();
    let mut started = false;
    let mut watcher = Watcher::acting(|event, _| {
        pids.note(event);
        if let Event::Go { .. } = event {
            started = true;
            // Its processes are gone; now it goes on beside its successor.
            signal(hung.id(), Signal::SIGCONT);
        }
    });
    let outcome = coord::run(&bed.plan, store, &mut watcher).unwrap();
    assert_eq!(outcome.end, End::Complete, "{:#?}", watcher.events);
    assert!(watcher.told("starting in"));
    drop(watcher);
    assert!(started);
    let output = hung.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(69), "{said}");
    // By its own look, or by the store, whichever comes first.
    let told = ["taken the job over", "superseded"];
    assert!(told.iter().any(|word| said.contains(word)), "{said}");
    assert!(pids.0.iter().all(|&pid| !lives(pid)));
    // Every checkpoint that may be used is of the successor's line, and the job is known to be complete.
    let store = JobStore::open(&path).unwrap();
    assert!(record::is_complete(store.job()));
    for checkpoint in store.list().unwrap().checkpoints {
        if let (CheckpointState::Committed, Some(manifest)) =
            (checkpoint.state, checkpoint.manifest)
        {
            assert!(manifest.incarnation.0 != 1 || manifest.epoch <= usable().unwrap().epoch);
        }
    }
    let published_late = store.list().unwrap().checkpoints.into_iter().any(|found| {
        found
            .manifest
            .is_some_and(|manifest| manifest.incarnation.0 == 1)
            && matches!(found.state, CheckpointState::Ignored { .. })
    });
    assert!(
        !published_late,
        "the coordinator that was replaced has published"
    );
}

#[test]
fn processes_of_a_coordinator_that_was_killed_are_waited_for() {
    let mut bed = Bed::new(2, 2, 600, "good");
    launched(&mut bed.plan, &line(), 1, 0);
    let path = bed.plan.store.clone();
    drop(JobStore::create(&path, record::new_job(&bed.plan).unwrap()).unwrap());
    let mut lost = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "coordinator_of_the_job", "--nocapture"])
        .env("TEST_COORDINATE", &path)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    while JobStore::open(&path)
        .unwrap()
        .newest_usable()
        .unwrap()
        .is_none()
    {
        std::thread::sleep(Duration::from_millis(5));
    }
    lost.kill().unwrap();
    lost.wait().unwrap();
    let left = path.join(store::names::hosts(Incarnation(1)));
    assert!(left.exists(), "nobody could remove its list of hosts");
    let mut watcher = Watcher::new();
    let outcome = bed.restart(&mut watcher);
    assert_eq!(outcome.end, End::Complete);
    assert!(!left.exists());
    assert!(!path.join(store::names::hosts(Incarnation(2))).exists());
    assert!(watcher.told("starting in"));
    assert!(watcher.starts()[0].is_some(), "a start from a checkpoint");
}
