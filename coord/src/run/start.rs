//! One start of the job (an incarnation): its processes, their places, what they are told.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::Stdio;
use std::time::Duration;

use protocol::control::{Assignment, ProgramIdentity, RankFigures, Restore, environment};
use protocol::ids::{Epoch, Incarnation, Process, Rank};
use protocol::nodes::{Layout, Nodes};
use protocol::placement;
use wire::Address;

use crate::child::label::{Pipes, Pump};
use crate::child::launcher::{self, Launcher};
use crate::child::spawn::{self, OpenFiles, ProgramError};
use crate::child::table::Children;
use crate::clock;
use crate::launch::{Launch, kind};
use crate::memory;
use crate::plan::Plan;
use crate::poller::{Poller, Ready};
use crate::token::{TOKEN_BYTES, Token};

/// Why the processes could not be started.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error("the shared memory of the job can't be made: {0}")]
    SharedMemory(String),
    #[error(
        "can't {what}: {source}; check the limits of processes and open files (ulimit -u, ulimit -n)"
    )]
    System {
        what: &'static str,
        source: io::Error,
    },
}

/// The present start. Dropping it kills its processes.
#[derive(Debug, Default)]
pub(super) struct Start {
    incarnation: Incarnation,
    /// The newest epoch that was ever announced before it.
    newest: Epoch,
    restore: Option<Restore>,
    /// The programs that wrote the checkpoint it starts from.
    origins: Vec<ProgramIdentity>,
    placement: Vec<Process>,
    identity: Option<ProgramIdentity>,
    /// What each process may use for storing checkpoints.
    memory_bytes: u64,
    /// Processes of the node that has the most.
    processes_beside: u32,
    computing: Vec<Vec<(Rank, u64)>>,
    /// What was last told of each rank.
    figures: BTreeMap<Rank, RankFigures>,
    /// Ranks that have returned from the solver's main.
    finished: BTreeSet<Rank>,
    processes: u32,
    /// What its processes have to show.
    token: Option<Token>,
    /// Where its processes are, by what they told.
    hosts: Vec<String>,
    pids: Vec<u32>,
    children: Children,
    launcher: Option<Launcher>,
    /// When the launcher is killed, once it was asked to end.
    kill_at: Option<Duration>,
    _pump: Option<Pump>,
}

impl Start {
    /// A start whose processes are yet to be started.
    pub(super) fn new(
        plan: &Plan,
        incarnation: Incarnation,
        newest: Epoch,
        restore: Option<Restore>,
        origins: Vec<ProgramIdentity>,
        (layout, drained): (Option<&Layout>, &[Process]),
        token: Token,
    ) -> Self {
        let processes = layout.map_or(plan.all_processes(), Layout::processes);
        let processes_beside = match layout {
            Some(layout) => layout.shares.iter().map(|share| share.processes).max(),
            None => Some(processes),
        };
        let processes_beside = processes_beside.unwrap_or(1);
        Self {
            incarnation,
            newest,
            restore,
            origins,
            placement: placement::beside_idle(plan.ranks, processes, plan.processes, drained),
            identity: None,
            // Each node has a memory of its own, taken to be like this one's.
            memory_bytes: plan
                .memory_bytes
                .unwrap_or_else(|| memory::default_budget_bytes(processes_beside)),
            processes_beside,
            computing: vec![Vec::new(); processes as usize],
            figures: BTreeMap::new(),
            finished: BTreeSet::new(),
            processes,
            token: Some(token),
            hosts: vec![String::new(); processes as usize],
            pids: vec![0; processes as usize],
            children: Children::new(),
            launcher: None,
            kill_at: None,
            _pump: None,
        }
    }

    /// Variables that every process needs.
    fn environment(&self, address: &Address, transport: &str) -> Vec<(&'static str, String)> {
        let token = self.token.as_ref().map(Token::to_hex);
        vec![
            (environment::CONTROL, address.to_string()),
            (environment::TOKEN, token.unwrap_or_default()),
            (environment::TRANSPORT, transport.to_owned()),
        ]
    }

    /// Starts the launcher, which starts the processes.
    pub(super) fn launch(
        &mut self,
        plan: &Plan,
        launch: &Launch,
        (nodes, layout): (&Nodes, &Layout),
        address: &Address,
        open_files: OpenFiles,
        poller: &Poller,
    ) -> Result<(), StartError> {
        let order = |hostfile: &std::path::Path| {
            kind::command(
                &launch.kind,
                &kind::Start {
                    program: &plan.program,
                    layout,
                    nodes,
                    arguments: &launch.arguments,
                    hostfile,
                },
            )
        };
        // In the store: should this coordinator be killed, the next one removes it.
        let hostfile = plan.store.join(store::names::hosts(self.incarnation));
        let order = order(&hostfile);
        let text = &order.hostfile;
        launcher::write_hostfile(&hostfile, text)
            .map_err(system("write the launcher's list of hosts into the store"))?;
        let mut environment = self.environment(address, environment::TRANSPORT_MPI);
        environment.extend(order.environment);
        let mut arguments = vec![order.program.clone().into_os_string()];
        arguments.extend(order.arguments);
        tracing::info!(?arguments, text, "launching");
        let program = spawn::Program {
            path: order.program,
            arguments,
            directory: plan.program.directory.clone(),
        };
        let name = launch.kind.name();
        let launcher = Launcher::start(name, &program, &environment, hostfile, open_files)?;
        let launcher = self.launcher.insert(launcher);
        if let Some(pidfd) = launcher.pidfd() {
            poller
                .add(pidfd, Ready::Launcher)
                .map_err(system("watch the launcher"))?;
        }
        Ok(())
    }

    /// Starts the processes. Those started before an error stay in the table.
    pub(super) fn spawn(
        &mut self,
        plan: &Plan,
        address: &Address,
        open_files: OpenFiles,
        poller: &Poller,
    ) -> Result<(), StartError> {
        let shared = libckpt_transport::shm::create(self.processes)
            .map_err(|error| StartError::SharedMemory(error.to_string()))?;
        let mut pipes = Pipes::new();
        for process in (0..self.processes).map(Process) {
            let mut environment = self.environment(address, environment::TRANSPORT_SHM);
            environment.extend([
                (environment::PROCESS, process.0.to_string()),
                (environment::PROCESSES, self.processes.to_string()),
                (environment::SHM_FD, number(&shared)),
            ]);
            let ends = if plan.label {
                pipes
                    .add(&self.hosted(process))
                    .map_err(system("make pipes for --label"))?
            } else {
                Default::default()
            };
            if plan.label {
                environment.push((environment::OUTPUT_FDS, ends.variable));
            }
            let mut descriptors: Vec<BorrowedFd<'_>> = vec![shared.as_fd()];
            descriptors.extend(ends.descriptors.iter().map(AsFd::as_fd));
            let child = spawn::spawn(
                &plan.program,
                &environment,
                &descriptors,
                open_files,
                Stdio::inherit(),
            )?;
            self.pids[process.index()] = child.id();
            self.children
                .push(child)
                .map_err(system("watch a process"))?;
            if let Some(pidfd) = self.children.pidfd(process) {
                poller
                    .add(pidfd, Ready::Child(process))
                    .map_err(system("watch a process"))?;
            }
        }
        if plan.label {
            self._pump = Some(pipes.pump());
        }
        Ok(())
    }

    /// What a process is told when it connects.
    pub(super) fn assignment(
        &self,
        plan: &Plan,
        job: protocol::ids::JobId,
        process: Process,
    ) -> Assignment {
        // Each image may need many files: of those a process is told its own only.
        let restore = self.restore.as_ref().map(|restore| Restore {
            epoch: restore.epoch,
            incarnation: restore.incarnation,
            files: restore.files.clone(),
            needs: restore
                .needs
                .iter()
                .filter(|need| self.placement.get(need.file.rank.index()) == Some(&process))
                .cloned()
                .collect(),
        });
        Assignment {
            job,
            incarnation: self.incarnation,
            epoch: self.newest,
            placement: self.placement.clone(),
            processes: self.processes,
            processes_beside: self.processes_beside,
            slot_bytes: plan.slot_bytes,
            stack_bytes: plan.stack_bytes,
            store: plan.store.to_string_lossy().into_owned(),
            compression: plan.compression,
            restore,
            strict: plan.strict,
            scan: self.restore.is_none(),
            memory_bytes: self.memory_bytes,
            tracking: plan.tracking,
            capture: plan.capture,
            lease_us: plan.launch.as_ref().map(|_| {
                let lease = plan.lease().as_micros();
                u64::try_from(lease).unwrap_or(u64::MAX)
            }),
        }
    }

    /// Compares a process's program with the others' and the checkpoint's; the first one's is kept.
    pub(super) fn accept(&mut self, identity: ProgramIdentity) -> Result<(), Mismatch> {
        if let Some(first) = &self.identity {
            return match crate::identity::difference(first, &identity) {
                Some(what) => Err(Mismatch::Processes(what)),
                None => Ok(()),
            };
        }
        for origin in &self.origins {
            if let Some(what) = crate::identity::difference(origin, &identity) {
                return Err(Mismatch::Checkpoint(what));
            }
        }
        self.identity = Some(identity);
        Ok(())
    }

    /// The program that runs, once a process has told.
    pub(super) fn identity(&self) -> Option<&ProgramIdentity> {
        self.identity.as_ref()
    }

    pub(super) fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    pub(super) fn newest(&self) -> Epoch {
        self.newest
    }

    pub(super) fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    pub(super) fn placement(&self) -> &[Process] {
        &self.placement
    }

    pub(super) fn processes(&self) -> u32 {
        self.processes
    }

    pub(super) fn pids(&self) -> &[u32] {
        &self.pids
    }

    pub(super) fn hosts(&self) -> &[String] {
        &self.hosts
    }

    /// The host of a process, by what it told; empty where it has not.
    pub(super) fn host(&self, process: Process) -> &str {
        self.hosts.get(process.index()).map_or("", String::as_str)
    }

    /// Whether this is what a process of this start shows.
    pub(super) fn has_token(&self, shown: &[u8; TOKEN_BYTES]) -> bool {
        self.token.as_ref().is_some_and(|token| token.is(shown))
    }

    /// Takes note of where a process is.
    pub(super) fn set_place(&mut self, process: Process, pid: u32, host: &str) {
        if let Some(known) = self.pids.get_mut(process.index()) {
            *known = pid;
        }
        if let Some(known) = self.hosts.get_mut(process.index()) {
            host.clone_into(known);
        }
    }

    pub(super) fn launcher(&mut self) -> Option<&mut Launcher> {
        self.launcher.as_mut()
    }

    /// Asks the launcher to end, and has it killed if it does not.
    pub(super) fn end_launcher(&mut self, now: Duration) {
        if let Some(launcher) = &mut self.launcher {
            launcher.terminate();
            self.kill_at = self.kill_at.or(Some(now + launcher::TERM_GRACE));
        }
    }

    /// Waits for the launcher to end: what it has on other nodes ends in order while it lives, and a while after it if it is
    /// killed. If all is well, that happens by itself; if not, it is asked to end, and has as long for it as always.
    pub(super) fn see_launcher_out(&mut self, all_is_well: bool) {
        if all_is_well
            && let Some(launcher) = &self.launcher
            && launcher.wait(launcher::TERM_GRACE)
        {
            return;
        }
        self.end_launcher(clock::now());
        if let (Some(launcher), Some(kill_at)) = (&self.launcher, self.kill_at) {
            // One that does not end is killed with this start.
            let _ = launcher.wait(kill_at.saturating_sub(clock::now()));
        }
    }

    /// When the launcher is to be killed.
    pub(super) fn kill_at(&self) -> Option<Duration> {
        self.kill_at
    }

    /// Kills the launcher if it had its time.
    pub(super) fn handle_timeout(&mut self, now: Duration) {
        if self.kill_at.is_some_and(|at| now >= at) {
            self.kill_at = None;
            if let Some(launcher) = &mut self.launcher {
                launcher.kill();
            }
        }
    }

    pub(super) fn pid(&self, process: Process) -> u32 {
        self.pids().get(process.index()).copied().unwrap_or(0)
    }

    pub(super) fn children(&mut self) -> &mut Children {
        &mut self.children
    }

    pub(super) fn kill(&self) {
        self.children.kill_all();
    }

    pub(super) fn set_computing(&mut self, process: Process, computing: Vec<(Rank, u64)>) {
        if let Some(known) = self.computing.get_mut(process.index()) {
            *known = computing;
        }
    }

    /// What a process tells of its ranks.
    pub(super) fn set_figures(&mut self, told: Vec<RankFigures>) {
        let told = told.into_iter().map(|figures| (figures.rank, figures));
        self.figures.extend(told);
    }

    pub(super) fn figures(&self, rank: Rank) -> Option<RankFigures> {
        self.figures.get(&rank).copied()
    }

    pub(super) fn set_finished(&mut self, rank: Rank) {
        self.finished.insert(rank);
    }

    pub(super) fn has_finished(&self, rank: Rank) -> bool {
        self.finished.contains(&rank)
    }

    /// Ranks that have not come to the engine for long, by what their processes last told.
    pub(super) fn computing(&self) -> Vec<(Rank, u64)> {
        self.computing.concat()
    }

    fn hosted(&self, process: Process) -> Vec<Rank> {
        (0..)
            .zip(&self.placement)
            .filter(|(_, host)| **host == process)
            .map(|(number, _)| Rank(number))
            .collect()
    }
}

/// Why a process can't be part of this start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mismatch {
    /// It differs from the others.
    Processes(String),
    /// It differs from the program that wrote the checkpoint.
    Checkpoint(String),
}

fn number(descriptor: &OwnedFd) -> String {
    use std::os::fd::AsRawFd;
    descriptor.as_raw_fd().to_string()
}

fn system(what: &'static str) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::System { what, source }
}
