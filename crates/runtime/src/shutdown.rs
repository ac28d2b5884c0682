//! Leaving in order. One [`Trigger`] in the binary, a [`Shutdown`] in everybody's hands.
//!
//! Invariant: the phase only goes forward, and a dropped trigger means [`Phase::Stop`].

use tokio::sync::watch;
use tracing::info;

use crate::tasks::Tasks;

/// How far the process is on its way out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Business as usual.
    #[default]
    Run,
    /// Take nothing new, finish what is under way.
    Drain,
    /// End now.
    Stop,
}

impl Phase {
    /// The word in logs and in the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Drain => "drain",
            Self::Stop => "stop",
        }
    }
}

/// Says when to leave. Clones move the same phase.
#[derive(Debug, Clone)]
pub struct Trigger(watch::Sender<Phase>);

/// Hears when to leave. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Shutdown(watch::Receiver<Phase>);

impl Shutdown {
    /// A pair in [`Phase::Run`].
    #[must_use]
    pub fn new() -> (Trigger, Self) {
        let (sender, receiver) = watch::channel(Phase::Run);
        (Trigger(sender), Self(receiver))
    }

    /// The present phase.
    #[must_use]
    pub fn phase(&self) -> Phase {
        if self.0.has_changed().is_err() { Phase::Stop } else { *self.0.borrow() }
    }

    /// Whether the phase is `phase` or later.
    #[must_use]
    pub fn is(&self, phase: Phase) -> bool {
        self.phase() >= phase
    }

    /// Waits for the next change and says the new phase; [`Phase::Stop`] at once when it was reached and seen.
    ///
    /// # Cancel safety
    /// Yes: a change not returned is returned by the next call.
    pub async fn changed(&mut self) -> Phase {
        match self.0.changed().await {
            Ok(()) => *self.0.borrow_and_update(),
            Err(_) => Phase::Stop,
        }
    }

    /// Waits until the phase is `phase` or later.
    ///
    /// # Cancel safety
    /// Yes.
    pub async fn reached(&self, phase: Phase) {
        let mut receiver = self.0.clone();
        // An error is a dropped trigger, which means stop.
        let _ = receiver.wait_for(|now| *now >= phase).await;
    }
}

impl Trigger {
    /// Moves on to `phase`. Going back is ignored.
    pub fn advance(&self, phase: Phase) {
        self.0.send_if_modified(|now| {
            let forward = phase > *now;
            *now = (*now).max(phase);
            forward
        });
    }

    /// Moves on with each SIGTERM or SIGINT: first to drain, then to stop.
    ///
    /// # Errors
    /// When the signals cannot be taken over.
    pub fn on_signals(&self, tasks: &Tasks) -> std::io::Result<()> {
        use tokio::signal::unix::{SignalKind, signal};
        let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let trigger = self.clone();
        tasks.spawn("signals", async move {
            for phase in [Phase::Drain, Phase::Stop] {
                let name = tokio::select! {
                    _ = term.recv() => "SIGTERM",
                    _ = int.recv() => "SIGINT",
                    () = trigger.0.closed() => return,
                };
                info!(signal = name, phase = phase.as_str(), "signal received");
                trigger.advance(phase);
            }
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn phase_only_goes_forward() {
        let (trigger, mut shutdown) = Shutdown::new();
        assert!(!shutdown.is(Phase::Drain));
        trigger.advance(Phase::Stop);
        trigger.advance(Phase::Drain);
        assert_eq!(shutdown.changed().await, Phase::Stop);
        shutdown.reached(Phase::Drain).await;
        assert!(shutdown.is(Phase::Stop));
    }

    #[tokio::test]
    async fn dropped_trigger_means_stop() {
        let (trigger, mut shutdown) = Shutdown::new();
        drop(trigger);
        shutdown.reached(Phase::Stop).await;
        assert_eq!(shutdown.changed().await, Phase::Stop);
        assert_eq!(shutdown.phase(), Phase::Stop);
    }
}
