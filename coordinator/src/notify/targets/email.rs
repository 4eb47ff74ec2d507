//! Email by SMTP (RFC 5321): the report as text, with an HTML page attached.

use async_trait::async_trait;
use imgsync_config::{EmailConfig, NotifyCondition, NotifyConfig};
use imgsync_oci::error::{Error, ErrorKind, Result};
use imgsync_oci::retry::{RetryBudget, RetryPolicy, RetryState};
use imgsync_oci::sanitize::sanitize_within;
use imgsync_registry::wait::sleep;
use imgsync_tls::{install_tls_provider, with_dates};
use imgsync_worker::settings;
use lettre::message::header::{ContentType, HeaderName, HeaderValue};
use lettre::message::{Attachment, Mailbox, MultiPart, SinglePart};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, Tls, TlsParameters};
use lettre::{AsyncSmtpTransport, AsyncTransport as _, Message as Mail, Tokio1Executor};
use std::fmt;
use std::path::Path;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

use crate::notify::notification::{Notification, NotificationEvent, NotificationText, load_template};
use crate::notify::target::{NotificationTarget, TargetContext, with_hint};
use crate::report::{self, ReportFormat, ReportSpec, ReportTemplate};

/// Timeout of one email.
const SEND_TIMEOUT: Duration = Duration::from_secs(60);
/// Maximum size of the attached page: many servers accept no more than 10 MB.
const MAX_ATTACHMENT_BYTES: usize = 5_000_000;

/// SMTP server and recipients.
struct Email {
    transport: AsyncSmtpTransport<Tokio1Executor>,
    server: String,
    from: Mailbox,
    to: Vec<Mailbox>,
    template: Option<ReportTemplate>,
    on: NotifyCondition,
    policy: RetryPolicy,
}

impl fmt::Debug for Email {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Email(by {})", self.server)
    }
}

/// Builds the configured emails.
pub(super) fn build(notify: &NotifyConfig, context: &TargetContext<'_>) -> Result<Vec<Box<dyn NotificationTarget>>> {
    let emails = notify.emails.iter().map(|it| Email::new(it, context.folder, context.policy));
    emails.map(|email| Ok(Box::new(email?) as Box<dyn NotificationTarget>)).collect()
}

#[async_trait]
impl NotificationTarget for Email {
    fn key(&self) -> &'static str {
        "email"
    }

    fn address(&self) -> String {
        let to: Vec<String> = self.to.iter().map(ToString::to_string).collect();
        format!("{} {}", self.server, to.join(" "))
    }

    fn label(&self) -> String {
        let to: Vec<String> = self.to.iter().map(ToString::to_string).collect();
        format!("{} by {}", to.join(", "), self.server)
    }

    fn wants(&self, event: NotificationEvent) -> bool {
        event.meets(self.on)
    }

    async fn send(&self, notification: &Notification<'_>) -> Result<()> {
        let message = NotificationText::render(notification, self.template.as_ref()).await?;
        let Notification::BatchEnded { report, level } = notification else {
            return self.send_mail(&message, None).await;
        };
        let mut page = Vec::new();
        let shape =
            ReportSpec { format: ReportFormat::Html, is_default_format: true, level: Some(*level), template: None };
        report::write(report, &shape, &mut page).await?;
        self.send_mail(&message, Some((&format!("imgsync-{}.html", report.batch.id), page))).await
    }

    fn describe_failure(&self, error: &Error) -> String {
        format!("email notification failed: {}", with_hint(error))
    }
}

impl Email {
    /// Creates the target from its configuration.
    fn new(configured: &EmailConfig, folder: &Path, policy: RetryPolicy) -> Result<Email> {
        install_tls_provider();
        let server = format!("{}:{}", configured.host, configured.port);
        let operation = format!("configuring the mail server {server}");
        let invalid = |error: String| Error::new(ErrorKind::Invalid, &operation, error);
        let mut tls = TlsParameters::builder(configured.host.clone());
        for pem in &configured.ca {
            let pem = settings::load_certificates(pem, folder)?;
            let trusted = Certificate::from_pem(&pem).map_err(|error| invalid(format!("`ca`: {error}")))?;
            tls = tls.add_root_certificate(trusted);
        }
        let tls = tls.build_rustls().map_err(|error| invalid(error.to_string()))?;
        let tls = match configured.implicit_tls {
            true => Tls::Wrapper(tls),
            false => Tls::Required(tls),
        };
        let mut transport = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(&configured.host)
            .port(configured.port)
            .tls(tls)
            .timeout(Some(SEND_TIMEOUT));
        if let Some((username, password)) = &configured.login {
            transport = transport.credentials(Credentials::new(username.clone(), password.expose().to_owned()));
        }
        let mailbox = |text: &String| text.parse::<Mailbox>().map_err(|error| invalid(format!("`{text}`: {error}")));
        Ok(Email {
            transport: transport.build(),
            server,
            from: mailbox(&configured.from)?,
            to: configured.to.iter().map(mailbox).collect::<Result<_>>()?,
            template: load_template(configured.template.as_deref(), folder)?,
            on: configured.on,
            policy,
        })
    }

    /// Sends an email, with a page attached if there is one.
    async fn send_mail(&self, message: &NotificationText, page: Option<(&str, Vec<u8>)>) -> Result<()> {
        let operation = format!("sending a mail by {}", self.server);
        let mail =
            self.mail(message, page).map_err(|error| Error::new(ErrorKind::Invalid, &operation, error.to_string()))?;
        let mut retry = RetryState::new(self.policy, &RetryBudget::default());
        loop {
            let error = match self.transport.send(mail.clone()).await {
                Ok(_) => return Ok(()),
                Err(error) => failure(&operation, &error),
            };
            tracing::debug!("{error}");
            retry
                .wait_before_retry(error, async |delay| sleep(delay, &CancellationToken::new()).await, |_, _, _| {})
                .await?;
        }
    }

    fn mail(
        &self,
        message: &NotificationText,
        page: Option<(&str, Vec<u8>)>,
    ) -> std::result::Result<Mail, lettre::error::Error> {
        let mut mail = Mail::builder().from(self.from.clone()).subject(&message.title).message_id(None);
        for to in &self.to {
            mail = mail.to(to.clone());
        }
        // Suppresses automatic replies (RFC 3834).
        let automatic = HeaderValue::new(HeaderName::new_from_ascii_str("Auto-Submitted"), "auto-generated".to_owned());
        let text = SinglePart::plain(format!("{}\n", message.text));
        let mut mail = match page.filter(|(_, page)| page.len() <= MAX_ATTACHMENT_BYTES) {
            Some((name, page)) => {
                let page = Attachment::new(name.to_owned()).body(page, ContentType::TEXT_HTML);
                mail.multipart(MultiPart::mixed().singlepart(text).singlepart(page))?
            }
            None => mail.singlepart(text)?,
        };
        mail.headers_mut().insert_raw(automatic);
        Ok(mail)
    }
}

/// Converts an SMTP error.
fn failure(operation: &str, error: &lettre::transport::smtp::Error) -> Error {
    let mut detail = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(source) = next {
        let text = source.to_string();
        if !detail.contains(&text) {
            detail = format!("{detail}: {text}");
        }
        next = source.source();
    }
    let detail = sanitize_within(&with_dates(&detail), 400).into_owned();
    let status = error.status().map(u16::from);
    match () {
        () if matches!(status, Some(530 | 534 | 535 | 538)) => {
            Error::new(ErrorKind::Denied, operation, detail).with_hint("the server rejected `username` and `password`")
        }
        // The client reports certificate errors as failed connections.
        () if error.is_tls() || status.is_none() && detail.contains("certificate") => {
            Error::new(ErrorKind::Insecure, operation, detail)
                .with_hint("set `ca` for a private CA; mail is never sent without TLS")
        }
        () if error.is_permanent() => Error::new(ErrorKind::Refused, operation, detail),
        () if error.is_transient() => Error::new(ErrorKind::ServerError, operation, detail),
        () if error.is_timeout() => Error::new(ErrorKind::TimedOut, operation, detail),
        () if error.is_client() => Error::new(ErrorKind::Refused, operation, detail),
        () => Error::new(ErrorKind::Unreachable, operation, detail),
    }
}
