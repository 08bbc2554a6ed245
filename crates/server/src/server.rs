//! The server as a whole.

use crate::app::{App, Log};
use crate::config::{Config, ServedModel};
use crate::control::Control;
use crate::error::ServerError;
use crate::listen;
use crate::router::router;
use billfish_engine::Engine;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};

/// Threads that wait for the network. They compute little: tokens come from the engine's thread.
const NETWORK_THREADS: usize = 2;

/// A server that listens.
pub struct Server {
    app: Arc<App>,
    listener: TcpListener,
    address: SocketAddr,
    runtime: Runtime,
}

impl Server {
    /// Listens at the address of `config`. `log` hears of each request when its answer has ended.
    ///
    /// # Errors
    /// An address that cannot be had, a setting or a chat template that is wrong.
    pub fn bind(config: Config, model: ServedModel, engine: Engine, log: Log) -> Result<Server, ServerError> {
        let system = |source| ServerError::System { what: "threads for the network", source };
        let runtime = Builder::new_multi_thread().worker_threads(NETWORK_THREADS).enable_all().build().map_err(system)?;
        let wanted = format!("{}:{}", config.host, config.port);
        let pair = (config.host.clone(), config.port);
        let bound = runtime.block_on(TcpListener::bind(pair)).and_then(|l| Ok((l.local_addr()?, l)));
        let (address, listener) = bound.map_err(|source| ServerError::Listen { address: wanted, source })?;
        let app = Arc::new(App::new(config, model, engine, Control::default(), log)?);
        Ok(Server { app, listener, address, runtime })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What ends it.
    pub fn control(&self) -> Control {
        self.app.control.clone()
    }

    /// Answers until it is told to end, by its [`Control`] or, with `signals`, by signals to the process: the first one
    /// lets running requests finish within the shutdown timeout, the second one ends them.
    ///
    /// # Errors
    /// The engine failed, or signals cannot be heard.
    pub fn run(self, signals: bool) -> Result<(), ServerError> {
        let Server { app, listener, runtime, .. } = self;
        let routes = router(Arc::clone(&app));
        let control = app.control.clone();
        let result = runtime.block_on(async {
            let served = listen::serve(app, routes, listener);
            if !signals {
                return served.await;
            }
            tokio::pin!(served);
            tokio::select! {
                result = &mut served => return result,
                heard = control.follow_signals() => heard.map_err(|source| ServerError::System { what: "signals", source })?,
            }
            served.await
        });
        // requests that were told to end and did not are left behind
        runtime.shutdown_background();
        result
    }
}
