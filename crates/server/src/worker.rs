//! The engine's own thread. Everything else talks with it through channels.

use crate::error::ApiError;
use crate::metrics::{Ended, Metrics};
use billfish_engine::{Engine, EngineError, FinishReason, Happened, RequestId, Stats, Submission};
use std::collections::HashMap;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{oneshot, watch};

/// What is told to the engine.
enum Command {
    Submit {
        submission: Box<Submission>,
        tag: usize,
        events: UnboundedSender<Event>,
        reply: oneshot::Sender<Result<RequestId, EngineError>>,
    },
    Abort(RequestId),
    Stop,
}

/// Something that happened to the request that was submitted with this tag.
pub(crate) type Event = (usize, Happened);

/// The engine, as the rest of the server sees it.
pub(crate) struct Worker {
    commands: Sender<Command>,
    state: Arc<Mutex<State>>,
    over: watch::Receiver<bool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct State {
    stats: Stats,
    /// Why the engine stopped, if it did.
    failed: Option<String>,
}

/// A request that the engine works at.
struct Open {
    tag: usize,
    events: UnboundedSender<Event>,
    begin: Instant,
    prompt: usize,
    /// When the last token of each choice came.
    last: Vec<Option<Instant>>,
    /// Choices that have not ended.
    running: usize,
    first: Option<Instant>,
    tokens: usize,
}

impl Worker {
    /// Starts the thread.
    pub fn start(engine: Engine, metrics: Arc<Metrics>) -> std::io::Result<Worker> {
        let (commands, receiver) = channel();
        let state = Arc::new(Mutex::new(State { stats: engine.stats(), failed: None }));
        let shared = Arc::clone(&state);
        let (end, over) = watch::channel(false);
        let thread = std::thread::Builder::new().name("engine".into()).spawn(move || {
            // a panic in the engine ends this thread and leaves a message for everyone who asks
            let mut mark = Mark { state: shared, why: Some("it panicked".into()), end };
            let why = Loop { engine, commands: receiver, open: HashMap::new(), metrics, state: &mark.state.clone() }.run();
            mark.why = why;
        })?;
        Ok(Worker { commands, state, over, thread: Mutex::new(Some(thread)) })
    }

    /// What the engine is doing, as of its last step.
    pub fn stats(&self) -> Stats {
        self.state().stats.clone()
    }

    /// Why the engine stopped, if it did.
    pub fn failed(&self) -> Option<String> {
        self.state().failed.clone()
    }

    /// Returns once the thread has ended.
    pub async fn ended(&self) {
        // a sender that is gone has ended too
        let _ = self.over.clone().wait_for(|over| *over).await;
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn dead(&self) -> ApiError {
        ApiError::unavailable(format!("the engine has stopped: {}", self.failed().unwrap_or_else(|| "it was told to".into())))
    }

    /// Ends the thread after its current step.
    pub fn stop(&self) {
        // no receiver: it has ended already
        let _ = self.commands.send(Command::Stop);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // a panic is in `failed`
            let _ = thread.join();
        }
    }

    /// Hands in requests that belong together; if one is refused, none of them runs.
    pub async fn submit(self: &Arc<Self>, submissions: Vec<Submission>) -> Result<Job, ApiError> {
        let (events, receiver) = unbounded_channel();
        let open = submissions.iter().map(|s| s.n).sum();
        let mut job = Job { worker: Arc::clone(self), events: receiver, ids: vec![], open };
        for (tag, submission) in submissions.into_iter().enumerate() {
            let (reply, answer) = oneshot::channel();
            let command = Command::Submit { submission: Box::new(submission), tag, events: events.clone(), reply };
            self.commands.send(command).map_err(|_| self.dead())?;
            let id = answer.await.map_err(|_| self.dead())??;
            job.ids.push(id);
        }
        Ok(job)
    }
}

/// Says in the shared state why the engine's thread ended, also when it unwinds.
struct Mark {
    state: Arc<Mutex<State>>,
    why: Option<String>,
    end: watch::Sender<bool>,
}

impl Drop for Mark {
    fn drop(&mut self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).failed = self.why.take();
        self.end.send_replace(true);
    }
}

/// Requests that run for one client. Dropping it aborts what has not ended.
pub(crate) struct Job {
    worker: Arc<Worker>,
    events: UnboundedReceiver<Event>,
    ids: Vec<RequestId>,
    /// Choices that have not ended.
    open: usize,
}

impl Job {
    /// The next event; none once every choice has ended.
    pub async fn next(&mut self) -> Result<Option<Event>, ApiError> {
        if self.open == 0 {
            return Ok(None);
        }
        let Some((tag, happened)) = self.events.recv().await else { return Err(self.worker.dead()) };
        match happened {
            Happened::Failed(e) => Err(e.into()),
            Happened::End { reason: FinishReason::Deadline, .. } => Err(ApiError::deadline()),
            Happened::End { .. } => {
                self.open -= 1;
                Ok(Some((tag, happened)))
            }
            _ => Ok(Some((tag, happened))),
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if self.open > 0 {
            for id in self.ids.drain(..) {
                // no receiver: the engine has ended, and all its requests with it
                let _ = self.worker.commands.send(Command::Abort(id));
            }
        }
    }
}

/// What the thread owns.
struct Loop<'s> {
    engine: Engine,
    commands: Receiver<Command>,
    open: HashMap<RequestId, Open>,
    metrics: Arc<Metrics>,
    state: &'s Mutex<State>,
}

impl Loop<'_> {
    /// Works until it is told to stop. Gives the reason if the engine failed.
    fn run(mut self) -> Option<String> {
        let mut idle = true;
        loop {
            loop {
                let wait = idle && !self.engine.prepare();
                let command = if wait { self.commands.recv().map_err(|_| TryRecvError::Disconnected) } else { self.commands.try_recv() };
                match command {
                    Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return None,
                    Err(TryRecvError::Empty) if idle => continue,
                    Err(TryRecvError::Empty) => break,
                    Ok(command) => self.obey(command),
                }
                idle = false;
            }
            let Loop { engine, open, metrics, .. } = &mut self;
            match engine.step(&mut |id, happened| hear(open, metrics, id, happened)) {
                Ok(busy) => idle = !busy,
                Err(e) => {
                    let why = e.to_string();
                    // before the requests hear that their channels are closed
                    self.state.lock().unwrap_or_else(PoisonError::into_inner).failed = Some(why.clone());
                    return Some(why);
                }
            }
            self.publish();
        }
    }

    fn publish(&self) {
        let stats = self.engine.stats();
        self.state.lock().unwrap_or_else(PoisonError::into_inner).stats = stats;
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Submit { submission, tag, events, reply } => {
                let (prompt, n, most) = (submission.prompt.len(), submission.n, submission.max_tokens);
                let answer = self.engine.submit(*submission);
                if let Ok(id) = &answer {
                    let open = Open { tag, events, begin: Instant::now(), prompt, last: vec![None; n], running: n, first: None, tokens: 0 };
                    self.open.insert(*id, open);
                    let mut counts = self.metrics.counts();
                    counts.params_n.add(n as f64);
                    counts.params_max.add(most as f64);
                }
                // nobody waits any more: the job was dropped, or will be at once, and aborts
                if let Err(Ok(id)) = reply.send(answer) {
                    self.engine.abort(id);
                }
            }
            Command::Abort(id) => self.engine.abort(id),
            Command::Stop => {}
        }
        self.publish();
    }
}

/// Counts what happened and passes it on.
fn hear(open: &mut HashMap<RequestId, Open>, metrics: &Metrics, id: RequestId, happened: Happened) {
    let Some(request) = open.get_mut(&id) else { return };
    let now = Instant::now();
    let mut counts = metrics.counts();
    let mut over = false;
    match &happened {
        Happened::Prompt { .. } => {
            counts.prompt_tokens += request.prompt as u64;
            counts.request_prompt.add(request.prompt as f64);
        }
        Happened::Token { choice, .. } => {
            counts.generation_tokens += 1;
            request.tokens += 1;
            if request.first.is_none() {
                request.first = Some(now);
                counts.first_token.add((now - request.begin).as_secs_f64());
            }
            if let Some(before) = request.last.get_mut(*choice).and_then(|last| last.replace(now)) {
                counts.between_tokens.add((now - before).as_secs_f64());
            }
        }
        Happened::End { reason, .. } => {
            counts.ended(match reason {
                FinishReason::Stop => Ended::Stop,
                FinishReason::Length => Ended::Length,
                FinishReason::Cancelled => Ended::Abort,
                FinishReason::Deadline => Ended::Deadline,
            });
            request.running = request.running.saturating_sub(1);
            over = request.running == 0;
        }
        Happened::Failed(_) => {
            counts.ended(Ended::Error);
            over = true;
        }
    }
    // nobody listens: the job was dropped, which aborts
    let _ = request.events.send((request.tag, happened));
    if over {
        counts.request.add((now - request.begin).as_secs_f64());
        counts.request_generation.add(request.tokens as f64);
        counts.decode.add(request.first.map_or(0.0, |first| (now - first).as_secs_f64()));
        open.remove(&id);
    }
}
