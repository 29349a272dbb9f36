//! What goes wrong, and how it is mended.

use std::time::Duration;

use ::bgp::{Family, session::Event as SessionEvent};

use super::{
    topology::SPEAKERS,
    world::{Event, World},
};

impl World {
    /// One fault; another one follows until the time for that is over.
    pub(super) fn fault(&mut self) {
        if self.agenda.now >= self.chaos_until {
            return;
        }
        let pause = self.rng.ms(50, 2_000);
        self.agenda.after(pause, Event::Fault);
        let speaker = self.rng.below(SPEAKERS);
        let neighbors: Vec<usize> = self.topology.neighbors(speaker).collect();
        let neighbor = self.rng.pick(&neighbors);
        match self.rng.below(10) {
            0 | 1 => self.cut_link(speaker, neighbor),
            2 => self.reset_connections(speaker, neighbor),
            3 => self.lose_connections(speaker, neighbor),
            4 => self.restart(speaker, true),
            5 => self.restart(speaker, false),
            6 | 7 => self.withdraw(speaker),
            8 => {
                self.note(format!("operator of {speaker} resets {neighbor}"));
                self.tell(speaker, neighbor, SessionEvent::Reset { communication: "again".to_owned() });
            }
            _ => {
                let family = self.rng.pick(&Family::ALL);
                self.note(format!("{speaker} asks {neighbor} for {family}"));
                self.tell(speaker, neighbor, SessionEvent::RequestRefresh(family));
            }
        }
    }

    /// A link carries nothing for a while. In half of the cases both ends see it go down.
    fn cut_link(&mut self, one: usize, other: usize) {
        let link = (one.min(other), one.max(other));
        if self.down.contains(&link) {
            return;
        }
        self.note(format!("link {}-{} goes down", link.0, link.1));
        self.down.push(link);
        self.lose_connections(one, other);
        if self.rng.one_in(2) {
            self.tell(one, other, SessionEvent::LinkDown);
            self.tell(other, one, SessionEvent::LinkDown);
        }
        let pause = self.rng.ms(100, 40_000);
        self.agenda.after(pause, Event::Mend(link.0, link.1));
    }

    pub(super) fn mend(&mut self, one: usize, other: usize) {
        self.down.retain(|link| *link != (one, other));
        self.note(format!("link {one}-{other} carries again"));
        if self.rng.one_in(2) {
            self.tell(one, other, SessionEvent::Reachable);
            self.tell(other, one, SessionEvent::Reachable);
        }
    }

    /// What is on the way on these connections is lost, and nobody is told.
    fn lose_connections(&mut self, one: usize, other: usize) {
        for id in self.connections.between(one, other) {
            if let Some(tcp) = self.connections.get_mut(id) {
                tcp.cut = true;
            }
        }
    }

    /// Both ends are told that their connections are gone.
    fn reset_connections(&mut self, one: usize, other: usize) {
        self.note(format!("connections between {one} and {other} are reset"));
        for id in self.connections.between(one, other) {
            for end in [0, 1] {
                self.travel(id, end, Event::Closed(id, end));
            }
        }
    }

    fn restart(&mut self, speaker: usize, told: bool) {
        self.note(format!("{speaker} ends{}", if told { "" } else { " without a word" }));
        self.kill(speaker, told);
        let pause = self.rng.ms(0, 15_000);
        self.agenda.after(pause, Event::Start(speaker));
    }

    fn withdraw(&mut self, speaker: usize) {
        self.note(format!("{speaker} withdraws its prefixes"));
        self.originate(speaker, false);
        let pause = self.rng.ms(0, 10_000);
        self.agenda.after(pause, Event::Originate(speaker));
    }

    /// Mends everything at once.
    pub(super) fn heal(&mut self) {
        self.note("everything is mended".to_owned());
        for (one, other) in self.topology.links() {
            if self.down.contains(&(one, other)) {
                self.mend(one, other);
            }
        }
        for speaker in 0..SPEAKERS {
            self.start(speaker);
            if !self.nodes[speaker].originates {
                self.originate(speaker, true);
            }
        }
    }
}

/// How long faults go on.
pub(super) const CHAOS: Duration = Duration::from_secs(30);
