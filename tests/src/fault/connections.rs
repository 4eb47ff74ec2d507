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

use super::fault_rules::{FaultAction, actions_for};
use super::incoming_body::{BodyError, IncomingBody};
use super::request_log::RecordedRequest;
use super::request_type::{ParsedRequest, RequestType, parse_request};
use super::response::{FaultResponse, ResponseBody};
use super::response_head::{self, HeadFault, HeadFaultSlot};
use super::state::Inner;
use super::{auth, blobs, body_sender, create_api, goaway, listing, manifests, quirks, randomized, uploads, vendor};

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
                    None => serve_connection(stream, remote, inner, connection).await,
                    Some(acceptor) => {
                        if let Ok(stream) = acceptor.accept(stream).await {
                            if inner.take_goaway() {
                                return goaway::refuse_connection(stream).await;
                            }
                            serve_connection(stream, remote, inner, connection).await;
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

async fn serve_connection<S>(stream: S, remote: SocketAddr, inner: Arc<Inner>, connection: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let http1_only = inner.options.http1_only;
    let title_case = inner.options.quirks.title_case;
    let writes = HeadFaultSlot::default();
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
    let _ = builder.serve_connection(TokioIo::new(response_head::FaultyConnection::new(stream, writes)), service).await;
}

async fn respond(
    inner: Arc<Inner>,
    request: Request<Body>,
    remote: SocketAddr,
    (connection, writes): (CancellationToken, HeadFaultSlot),
) -> Result<Response<Body>, h2::Error> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let query = parts.uri.query().unwrap_or_default().to_owned();
    let ParsedRequest { kind, repository, reference } = parse_request(&parts.method, &path, &query);
    let kind = if inner.options.quirks.token_path == Some(path.as_str()) { RequestType::Token } else { kind };
    let record = inner.log.add(RecordedRequest {
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
        is_body_complete: false,
        at: Instant::now(),
    });
    let mut in_flight = inner.begin_request();
    in_flight.slot = match &inner.slots {
        Some(slots) => Some(Arc::clone(slots).acquire_owned().await.expect("the slots stay open")),
        None => None,
    };
    if !inner.options.latency.is_zero() {
        tokio::time::sleep(inner.options.latency).await;
    }
    let mut actions = actions_for(&inner.rules.lock().expect("the rules are whole"), &record);
    if actions.iter().any(|action| matches!(action, FaultAction::RefuseStream)) {
        return Err(h2::Reason::REFUSED_STREAM.into());
    }
    let mut body = IncomingBody::new(&inner, &record, body, &actions);
    let answer = match handle_request(&inner, &record, &mut body, &actions).await {
        Ok(answer) => randomized::randomize(&inner, &record, quirks::alter_response(&inner, &record, answer)),
        Err(BodyError::Early(status)) => FaultResponse::from_status_code(status),
        Err(BodyError::Cut) => return Ok(cut(&connection).await),
        Err(BodyError::Gone) => FaultResponse::new(StatusCode::BAD_REQUEST),
    };
    if actions.iter().any(|action| matches!(action, FaultAction::CutInsteadOfAnswer)) {
        return Ok(cut(&connection).await);
    }
    for action in &actions {
        match action {
            FaultAction::DripHead { every } => writes.set(HeadFault::Drip(*every)),
            FaultAction::EndlessHead => writes.set(HeadFault::Endless),
            _ => {}
        }
    }
    quirks::add_body_faults(&inner, &record, &answer, &mut actions);
    Ok(body_sender::send(&inner, record.n, record.method == "HEAD", answer, &actions, connection, in_flight))
}

/// Closes the connection. Never returns: the connection's task is dropped together with this future.
async fn cut(connection: &CancellationToken) -> Response<Body> {
    connection.cancel();
    std::future::pending().await
}

async fn handle_request(
    inner: &Arc<Inner>,
    record: &RecordedRequest,
    body: &mut IncomingBody,
    actions: &[FaultAction],
) -> Result<FaultResponse, BodyError> {
    if !inner.is_within_rate() {
        body.drain().await?;
        let answer = FaultResponse::error(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", "the rate is exceeded");
        return Ok(answer.header(header::RETRY_AFTER, 1));
    }
    for action in actions {
        match action {
            FaultAction::StallForever => std::future::pending().await,
            FaultAction::CutBefore => return Err(BodyError::Cut),
            FaultAction::Delay(delay) => tokio::time::sleep(*delay).await,
            FaultAction::Gate(gate) => gate.acquire().await.expect("a gate stays open").forget(),
            FaultAction::Status { code, headers, body: with } => {
                body.drain().await?;
                let answer = FaultResponse::from_status_code(*code).body(with.clone());
                return Ok(headers.iter().fold(answer, |answer, (name, value)| answer.header(name.as_str(), value)));
            }
            FaultAction::Redirect { to, status } => {
                body.drain().await?;
                let mark = if record.query.is_empty() { "" } else { "?" };
                let to = to.replace("{path}", &format!("{}{mark}{}", record.path, record.query));
                return Ok(FaultResponse::from_status_code(*status).header(header::LOCATION, to));
            }
            FaultAction::BigBody { mib, .. } => {
                body.drain().await?;
                let mut answer = FaultResponse::new(StatusCode::OK).header(header::CONTENT_TYPE, "application/json");
                answer.body = ResponseBody::Filler(mib * 1024 * 1024);
                return Ok(answer);
            }
            _ => {}
        }
    }
    let has_its_own_way = matches!(
        record.kind,
        RequestType::Token
            | RequestType::ApiRepositories
            | RequestType::ApiTags
            | RequestType::ApiLogin
            | RequestType::ApiCreate
            | RequestType::Exchange
            | RequestType::Signed
    );
    if let Some(refusal) = if has_its_own_way { None } else { auth::check(inner, record) } {
        body.drain().await?;
        return Ok(refusal);
    }
    if let Some(answer) = quirks::early_response(inner, record) {
        body.drain().await?;
        return Ok(answer);
    }
    match record.kind {
        RequestType::Ping => Ok(FaultResponse::json(StatusCode::OK, &serde_json::json!({}))
            .header("docker-distribution-api-version", "registry/2.0")),
        RequestType::Token => auth::token(inner, record, body).await,
        RequestType::ApiCreate => create_api::create(inner, record, body).await,
        RequestType::Exchange => auth::exchange(inner, body).await,
        RequestType::ApiLogin => vendor::login(inner, body).await,
        RequestType::ApiRepositories | RequestType::ApiTags => Ok(vendor::list(inner, record)),
        RequestType::Tags => Ok(listing::tags(inner, record)),
        RequestType::Catalog => Ok(listing::catalog(inner, record)),
        RequestType::Referrers => Ok(listing::referrers(inner, record)),
        RequestType::ManifestHead | RequestType::ManifestGet => Ok(manifests::get(inner, record)),
        RequestType::ManifestPut => manifests::put(inner, record, body).await,
        RequestType::ManifestDelete => Ok(manifests::delete(inner, record)),
        RequestType::BlobHead | RequestType::BlobGet | RequestType::Signed => Ok(blobs::get(inner, record)),
        RequestType::BlobDelete => Ok(blobs::delete(inner, record)),
        RequestType::UploadStart | RequestType::UploadMount => uploads::start(inner, record, body).await,
        RequestType::UploadPatch => uploads::patch(inner, record, body).await,
        RequestType::UploadPut => uploads::put(inner, record, body).await,
        RequestType::UploadStatus => Ok(uploads::status(inner, record)),
        RequestType::UploadDelete => Ok(uploads::delete(inner, record)),
        RequestType::Other => {
            body.drain().await?;
            Ok(FaultResponse::not_found("NOT_FOUND"))
        }
    }
}
