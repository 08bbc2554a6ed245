//! Starting and stopping: who is at work, and who was told to end.

use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// How far the server is from its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Requests are answered.
    Serving,
    /// New requests are refused, accepted ones run to their end.
    Draining,
    /// Accepted ones end now, with an error.
    Stopping,
}

/// Tells a running server to stop. Clones tell the same server.
#[derive(Clone, Debug)]
pub struct Control {
    phase: Arc<watch::Sender<Phase>>,
    busy: Arc<watch::Sender<usize>>,
}

/// A request is at work as long as this lives.
#[derive(Debug)]
pub(crate) struct Busy(Arc<watch::Sender<usize>>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.send_modify(|n| *n -= 1);
    }
}

impl Default for Control {
    fn default() -> Self {
        Control { phase: Arc::new(watch::Sender::new(Phase::Serving)), busy: Arc::new(watch::Sender::new(0)) }
    }
}

impl Control {
    /// Refuses new requests and lets accepted ones finish.
    pub fn drain(&self) {
        self.advance(Phase::Draining);
    }

    /// Ends accepted requests too.
    pub fn stop(&self) {
        self.advance(Phase::Stopping);
    }

    /// How far it is.
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    fn advance(&self, to: Phase) {
        self.phase.send_if_modified(|phase| {
            let later = to > *phase;
            *phase = to.max(*phase);
            later
        });
    }

    /// Returns once the server is at least so far.
    pub(crate) async fn reached(&self, phase: Phase) {
        // the sender lives in `self`
        let _ = self.phase.subscribe().wait_for(|p| *p >= phase).await;
    }

    pub(crate) fn busy(&self) -> Busy {
        self.busy.send_modify(|n| *n += 1);
        Busy(Arc::clone(&self.busy))
    }

    /// Returns when nobody is at work, or `limit` is over: whether nobody is.
    pub(crate) async fn idle(&self, limit: Duration) -> bool {
        let mut busy = self.busy.subscribe();
        tokio::time::timeout(limit, busy.wait_for(|n| *n == 0)).await.is_ok()
    }

    /// Drains at the first signal to end, and stops at the second.
    ///
    /// # Errors
    /// The system does not let the process hear of signals.
    pub async fn follow_signals(&self) -> std::io::Result<()> {
        let mut signals = Signals::new()?;
        signals.next().await;
        self.drain();
        signals.next().await;
        self.stop();
        Ok(())
    }
}

/// Signals that ask the process to end.
#[cfg(unix)]
struct Signals(tokio::signal::unix::Signal, tokio::signal::unix::Signal);

#[cfg(unix)]
impl Signals {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Signals(signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?))
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.0.recv() => {}
            _ = self.1.recv() => {}
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Signals)
    }

    async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
