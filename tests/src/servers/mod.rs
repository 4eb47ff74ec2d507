//! Real servers, started by a test and stopped with it.

mod access_log;
mod chats;
mod containerd;
mod docker_engine;
mod docker_registry;
mod ferro_registry;
mod firewall;
mod identity;
pub(crate) mod process;
mod rabbitmq;
mod redis;
mod remote;
mod router_server;
mod sentinel;
mod shared_rabbitmq;
mod smtp;
mod telegram;
mod token;
mod webhook_receiver;

pub use access_log::LoggedRequest;
pub use chats::{ChatMessage, ChatServer};
pub use containerd::Containerd;
pub use docker_engine::DockerEngine;
pub use docker_registry::{DockerRegistry, DockerRegistryAuth, DockerRegistryOptions};
pub use ferro_registry::FerroRegistry;
pub use identity::{
    APP_SECRET, IdentityBehavior, IdentityGrants, IdentityServices, RecordedIdentityRequest, SERVICE_ACCOUNT,
    SERVICE_ACCOUNT_KEY,
};
pub use process::{find_program, free_port};
pub use rabbitmq::RabbitMq;
pub use redis::{RedisServer, RedisServerOptions, StoreSnapshot};
pub use remote::RemoteRegistry;
pub use sentinel::{MASTER_NAME, SentinelOptions, SentinelServers};
pub use smtp::{MailServer, ReceivedMail};
pub use telegram::{TelegramPost, TelegramServer};
pub use token::{TokenRequest, TokenServer};
pub use webhook_receiver::{ReceivedWebhook, WebhookReceiver};
