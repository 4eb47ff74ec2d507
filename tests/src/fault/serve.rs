//! Connections and requests, at the level where a connection can be cut.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use http::{Request, Response, StatusCode, Version, header};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::answer::{Answer, Payload};
use super::head::{self, Spoilt, Writes};
use super::record::Record;
use super::route::{Kind, Route, route};
use super::script::{Action, actions_for};
use super::state::Inner;
use super::upload_body::{Broken, Incoming};
use super::{auth, blobs, create, goaway, habits, listing, manifests, pump, uploads, vary, vendor};

pub(super) async fn accept(listener: TcpListener, inner: Arc<Inner>) {
    let acceptor = inner.options.authority.as_ref().map(|authority| {
        let hosts: Vec<_> = inner.options.hosts.iter().map(String::as_str).collect();
        let alpn: &[&str] = if inner.options.http1_only { &["http/1.1"] } else { &["h2", "http/1.1"] };
        authority.acceptor(&hosts, alpn, inner.options.demand_client)
    });
    loop {
        let (stream, remote) = tokio::select! {
            () = inner.stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(_) => continue,
            },
        };
        let _ = stream.set_nodelay(true);
        let inner = Arc::clone(&inner);
        let acceptor = acceptor.clone();
        let connection = inner.connection();
        tokio::spawn(async move {
            let stop = inner.stop.clone();
            let ended = connection.clone();
            let serve = async {
                match acceptor {
                    None => converse(stream, remote, inner, connection).await,
                    Some(acceptor) => {
                        if let Ok(stream) = acceptor.accept(stream).await {
                            if inner.takes_leave() {
                                return goaway::leave(stream).await;
                            }
                            converse(stream, remote, inner, connection).await;
                        }
                    }
                }
            };
            // Leaving the select drops the stream, which closes the connection.
            tokio::select! {
                () = serve => {}
                () = ended.cancelled() => {}
                () = stop.cancelled() => {}
            }
        });
    }
}

async fn converse<S>(stream: S, remote: SocketAddr, inner: Arc<Inner>, connection: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let http1_only = inner.options.http1_only;
    let title_case = inner.options.habits.title_case;
    let writes = Writes::default();
    let of_answers = writes.clone();
    let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
        let (inner, ends) = (Arc::clone(&inner), (connection.clone(), of_answers.clone()));
        respond(inner, request.map(Body::new), remote, ends)
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().max_buf_size(64 * 1024).title_case_headers(title_case);
    if http1_only {
        builder = builder.http1_only();
    }
    let _ = builder.serve_connection(TokioIo::new(head::Connection::new(stream, writes)), service).await;
}

async fn respond(
    inner: Arc<Inner>,
    request: Request<Body>,
    remote: SocketAddr,
    (connection, writes): (CancellationToken, Writes),
) -> Result<Response<Body>, h2::Error> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let Route { kind, repository, reference } = route(&parts.method, &path, &query);
    let kind = if inner.options.habits.token_path == Some(path.as_str()) { Kind::Token } else { kind };
    let record = inner.log.add(Record {
        n: 0,
        kind,
        method: parts.method.to_string(),
        path,
        query,
        repository,
        reference,
        headers: parts.headers,
        http2: parts.version == Version::HTTP_2,
        remote_port: remote.port(),
        status: None,
        body: Vec::new(),
        received: 0,
        sent: 0,
        done: false,
        at: Instant::now(),
    });
    let mut in_flight = inner.enter();
    in_flight.slot = match &inner.slots {
        Some(slots) => Some(Arc::clone(slots).acquire_owned().await.expect("the slots stay open")),
        None => None,
    };
    if !inner.options.latency.is_zero() {
        tokio::time::sleep(inner.options.latency).await;
    }
    let mut actions = actions_for(&inner.rules.lock().expect("the rules are whole"), &record);
    if actions.iter().any(|action| matches!(action, Action::RefuseStream)) {
        return Err(h2::Reason::REFUSED_STREAM.into());
    }
    let mut body = Incoming::new(&inner, &record, body, &actions);
    let answer = match answer(&inner, &record, &mut body, &actions).await {
        Ok(answer) => vary::vary(&inner, &record, habits::after(&inner, &record, answer)),
        Err(Broken::Early(status)) => Answer::code(status),
        Err(Broken::Cut) => return Ok(cut(&connection).await),
        Err(Broken::Gone) => Answer::new(StatusCode::BAD_REQUEST),
    };
    if actions.iter().any(|action| matches!(action, Action::CutInsteadOfAnswer)) {
        return Ok(cut(&connection).await);
    }
    for action in &actions {
        match action {
            Action::DripHead { every } => writes.spoil(Spoilt::Drip(*every)),
            Action::EndlessHead => writes.spoil(Spoilt::Endless),
            _ => {}
        }
    }
    habits::spoil(&inner, &record, &answer, &mut actions);
    Ok(pump::send(&inner, record.n, record.method == "HEAD", answer, &actions, connection, in_flight))
}

/// Closes the connection. Never returns: the connection's task is dropped together with this future.
async fn cut(connection: &CancellationToken) -> Response<Body> {
    connection.cancel();
    std::future::pending().await
}

async fn answer(
    inner: &Arc<Inner>,
    record: &Record,
    body: &mut Incoming,
    actions: &[Action],
) -> Result<Answer, Broken> {
    if !inner.is_within_rate() {
        body.drain().await?;
        let answer = Answer::error(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", "the rate is exceeded");
        return Ok(answer.header(header::RETRY_AFTER, 1));
    }
    for action in actions {
        match action {
            Action::StallForever => std::future::pending().await,
            Action::CutBefore => return Err(Broken::Cut),
            Action::Delay(delay) => tokio::time::sleep(*delay).await,
            Action::Gate(gate) => gate.acquire().await.expect("a gate stays open").forget(),
            Action::Status { code, headers, body: with } => {
                body.drain().await?;
                let answer = Answer::code(*code).body(with.clone());
                return Ok(headers.iter().fold(answer, |answer, (name, value)| answer.header(name.as_str(), value)));
            }
            Action::Redirect { to, status } => {
                body.drain().await?;
                let mark = if record.query.is_empty() { "" } else { "?" };
                let to = to.replace("{path}", &format!("{}{mark}{}", record.path, record.query));
                return Ok(Answer::code(*status).header(header::LOCATION, to));
            }
            Action::BigBody { mib, .. } => {
                body.drain().await?;
                let mut answer = Answer::new(StatusCode::OK).header(header::CONTENT_TYPE, "application/json");
                answer.body = Payload::Filler(mib * 1024 * 1024);
                return Ok(answer);
            }
            _ => {}
        }
    }
    let has_its_own_way = matches!(
        record.kind,
        Kind::Token | Kind::ApiRepositories | Kind::ApiTags | Kind::ApiLogin | Kind::ApiCreate | Kind::Signed
    );
    if let Some(refusal) = if has_its_own_way { None } else { auth::check(inner, record) } {
        body.drain().await?;
        return Ok(refusal);
    }
    if let Some(answer) = habits::before(inner, record) {
        body.drain().await?;
        return Ok(answer);
    }
    match record.kind {
        Kind::Ping => Ok(Answer::json(StatusCode::OK, &serde_json::json!({}))
            .header("docker-distribution-api-version", "registry/2.0")),
        Kind::Token => auth::token(inner, record, body).await,
        Kind::ApiCreate => create::create(inner, record, body).await,
        Kind::ApiLogin => vendor::login(inner, body).await,
        Kind::ApiRepositories | Kind::ApiTags => Ok(vendor::list(inner, record)),
        Kind::Tags => Ok(listing::tags(inner, record)),
        Kind::Catalog => Ok(listing::catalog(inner, record)),
        Kind::Referrers => Ok(listing::referrers(inner, record)),
        Kind::ManifestHead | Kind::ManifestGet => Ok(manifests::get(inner, record)),
        Kind::ManifestPut => manifests::put(inner, record, body).await,
        Kind::ManifestDelete => Ok(manifests::delete(inner, record)),
        Kind::BlobHead | Kind::BlobGet | Kind::Signed => Ok(blobs::get(inner, record)),
        Kind::BlobDelete => Ok(blobs::delete(inner, record)),
        Kind::UploadStart | Kind::UploadMount => uploads::start(inner, record, body).await,
        Kind::UploadPatch => uploads::patch(inner, record, body).await,
        Kind::UploadPut => uploads::put(inner, record, body).await,
        Kind::UploadStatus => Ok(uploads::status(inner, record)),
        Kind::UploadDelete => Ok(uploads::delete(inner, record)),
        Kind::Other => {
            body.drain().await?;
            Ok(Answer::not_found("NOT_FOUND"))
        }
    }
}
