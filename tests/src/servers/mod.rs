//! Real servers, started by a test and stopped with it.

mod access_log;
mod answering;
mod chats;
mod docker_engine;
mod docker_registry;
mod firewall;
mod other_registry;
pub(crate) mod process;
mod rabbitmq;
mod receiver;
mod redis;
mod remote;
mod smtp;
mod telegram;
mod token;

pub use access_log::LoggedRequest;
pub use chats::{ChatServer, Said};
pub use docker_engine::DockerEngine;
pub use docker_registry::{Auth, DockerRegistry, Options};
pub use other_registry::OtherRegistry;
pub use process::{find_program, free_port};
pub use rabbitmq::RabbitMq;
pub use receiver::{Received, Receiver};
pub use redis::{RedisOptions, RedisServer};
pub use remote::RemoteRegistry;
pub use smtp::{Delivered, MailServer};
pub use telegram::{Posted, TelegramServer};
pub use token::{TokenRequest, TokenServer};
