//! Connections: accepting them, and what keeps a client from holding one for nothing.

mod stream;

use crate::app::App;
use crate::control::{Control, Phase};
use crate::error::ServerError;
use crate::gate;
use axum::Router;
use axum::body::Body;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use stream::Impatient;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// After the last answer has ended, connections have so long to send it.
const FLUSH: Duration = Duration::from_secs(2);

/// How long a client may go on sending after its answer.
const LINGER: Duration = Duration::from_secs(1);

/// Accepts connections until the server was told to end and its requests have ended.
pub(crate) async fn serve(app: Arc<App>, routes: Router, listener: TcpListener) -> Result<(), ServerError> {
    let places = Arc::new(Semaphore::new(app.config.max_connections));
    let mut connections = JoinSet::new();
    let control = app.control.clone();
    let end = ended(&app, &control);
    tokio::pin!(end);
    loop {
        tokio::select! {
            () = &mut end => break,
            Some(_) = connections.join_next() => {}
            accepted = accept(&listener, &places) => {
                if let Some((socket, client, place)) = accepted {
                    let (app, routes) = (Arc::clone(&app), routes.clone());
                    connections.spawn(async move {
                        connection(app, routes, socket, client).await;
                        drop(place);
                    });
                }
            }
        }
    }
    drop(listener);
    let all = async { while connections.join_next().await.is_some() {} };
    // a client that does not take its answer is not waited for
    let _ = tokio::time::timeout(FLUSH, all).await;
    app.worker.stop();
    match app.worker.failed() {
        Some(found) => Err(ServerError::Engine { found }),
        None => Ok(()),
    }
}

/// Returns when nothing keeps the server from ending: drained, stopped, or the engine is gone.
async fn ended(app: &App, control: &Control) {
    tokio::select! {
        () = control.reached(Phase::Draining) => {}
        () = app.worker.ended() => {}
    }
    control.drain();
    tokio::select! {
        _ = control.idle(app.config.shutdown_timeout) => {}
        () = control.reached(Phase::Stopping) => {}
    }
    control.stop();
    control.idle(FLUSH).await;
}

/// The next connection, once there is a place for it.
async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> Option<(TcpStream, SocketAddr, tokio::sync::OwnedSemaphorePermit)> {
    // the semaphore is never closed
    let place = Arc::clone(places).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((socket, client)) => Some((socket, client, place)),
        Err(_) => {
            // the connection was gone already, or the process has too many files open: others end in a while
            tokio::time::sleep(Duration::from_millis(20)).await;
            None
        }
    }
}

/// Serves one connection until it ends.
async fn connection(app: Arc<App>, routes: Router, socket: TcpStream, client: SocketAddr) {
    // tokens are small and must not wait for each other
    let _ = socket.set_nodelay(true);
    let config = &app.config;
    let io = TokioIo::new(Impatient::new(socket, config.write_timeout));
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(config.head_timeout).max_headers(config.max_headers).max_buf_size(config.max_head);
    let service = {
        let app = Arc::clone(&app);
        service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
            let (app, routes) = (Arc::clone(&app), routes.clone());
            Box::pin(async move { Ok::<_, Infallible>(gate::answer(app, routes, client, request.map(Body::new)).await) })
        })
    };
    let mut connection = builder.serve_connection(io, service);
    let served = tokio::select! {
        served = poll_fn(|cx| connection.poll_without_shutdown(cx)) => served,
        () = app.control.reached(Phase::Stopping) => {
            Pin::new(&mut connection).graceful_shutdown();
            poll_fn(|cx| connection.poll_without_shutdown(cx)).await
        }
    };
    // a broken connection concerns its client alone
    drop(served);
    let _ = tokio::time::timeout(LINGER, linger(connection.into_parts().io.into_inner())).await;
}

/// Ends a connection so that its client hears the last answer: while bytes that nobody read are left, closing the socket
/// would make the system throw away what is still under way.
async fn linger(mut socket: Impatient) -> std::io::Result<()> {
    poll_fn(|cx| Pin::new(&mut socket).poll_shutdown(cx)).await?;
    let mut rest = [0; 8192];
    loop {
        let mut buf = ReadBuf::new(&mut rest);
        poll_fn(|cx| Pin::new(&mut socket).poll_read(cx, &mut buf)).await?;
        if buf.filled().is_empty() {
            return Ok(());
        }
    }
}
