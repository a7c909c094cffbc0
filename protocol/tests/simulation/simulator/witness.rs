//! Processes that can't reach another one any more, mostly because it is gone: they notice by their links, perhaps before the command
//! does.

use protocol::control::Report as Word;
use protocol::ids::{Incarnation, Process};
use protocol::recovery::Loss;
use rand::RngExt;

use super::world::{Event, World};
use super::{Checked, violated};

impl World {
    /// A process was killed: perhaps others notice by their links, and some of these do not see whose end it is.
    pub(super) fn be_noticed(&mut self, incarnation: Incarnation, gone: Process) {
        let released = self.command.as_ref().map(|command| &command.released);
        if released.is_some_and(|released| released.contains(&gone)) {
            // Nothing was on its links any more.
            return;
        }
        let Some(rng) = &mut self.witnesses else {
            return;
        };
        let mut noticed = Vec::new();
        for &(of, process) in self.hosted.keys() {
            if of == incarnation && rng.random_bool(0.5) {
                let peer = rng.random_bool(0.8).then_some(gone);
                let delay = self.options.link_delay.draw(rng);
                noticed.push((delay, Event::Stranded(of, process, peer, true)));
            }
        }
        for (delay, event) in noticed {
            self.after(delay, event);
        }
    }

    /// Now and then a link breaks between processes that live.
    pub(super) fn break_links(&mut self) {
        let Some(rng) = &mut self.witnesses else {
            return;
        };
        if self.troubles_left == 0 || !rng.random_bool(0.0002) {
            return;
        }
        let Some(command) = &self.command else {
            return;
        };
        let keys = self.hosted.keys().filter(|(of, process)| {
            Some(*of) == command.incarnation && !command.released.contains(process)
        });
        let keys: Vec<_> = keys.copied().collect();
        if keys.len() < 2 {
            return;
        }
        let (incarnation, process) = keys[rng.random_range(0..keys.len())];
        let peer = keys[rng.random_range(0..keys.len())].1;
        let peer = Some(peer).filter(|peer| *peer != process);
        self.troubles_left -= 1;
        self.strand(incarnation, process, peer, false);
    }

    /// A process does nothing more, and says so.
    pub(super) fn strand(
        &mut self,
        incarnation: Incarnation,
        process: Process,
        peer: Option<Process>,
        gone: bool,
    ) {
        let hosted = self.hosted.get_mut(&(incarnation, process));
        let Some(hosted) = hosted.filter(|it| it.running && !it.hung && it.stranded.is_none())
        else {
            return;
        };
        hosted.stranded = Some(gone);
        let reason = "endpoint timeout".to_owned();
        self.say(incarnation, process, &Word::Stranded { peer, reason });
    }

    /// The command counts a process as lost. Who has only noticed that another is gone must not be it.
    pub(super) fn lost_process(&mut self, process: Process, loss: &Loss) -> Checked {
        let Some(incarnation) = self.command.as_ref().and_then(|it| it.incarnation) else {
            return Ok(());
        };
        let named = self.hosted.get(&(incarnation, process));
        let lives = named.filter(|hosted| !hosted.hung);
        if lives.is_some_and(|hosted| hosted.stranded == Some(true)) {
            return violated(format!(
                "{process} counts as lost ({loss}), and has only noticed that another one was gone"
            ));
        }
        let mut of_it = self.hosted.range((incarnation, Process(0))..);
        let witnessed = of_it.any(|(_, hosted)| hosted.stranded == Some(true));
        self.report.witnessed += u64::from(witnessed);
        self.report.links_cut += u64::from(matches!(loss, Loss::Stranded(..)));
        Ok(())
    }
}
