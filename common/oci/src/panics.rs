//! Converts panics into errors, so that a panicking task does not take its slot, lease or connection with it.

use std::any::Any;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt as _;

use crate::error::{Error, ErrorKind, Result};
use crate::sanitize::sanitize;

/// Runs a future and converts a panic into an error of the operation `operation` with the panic's message.
pub async fn catch_panic<T>(operation: &str, future: impl Future<Output = Result<T>>) -> Result<T> {
    AssertUnwindSafe(future).catch_unwind().await.unwrap_or_else(|panic| {
        let detail = format!("internal error: panicked: {}", sanitize(panic_message(&*panic)));
        Err(Error::new(ErrorKind::Local, operation, detail).with_hint("please report this"))
    })
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic without a message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_becomes_an_error_with_its_words() {
        let index = 7;
        let error =
            catch_panic::<()>("copying a", async { panic!("index {index} is out of bounds") }).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Local);
        assert!(error.to_string().contains("copying a: internal error: panicked: index 7 is out of bounds"), "{error}");
        let error = catch_panic::<()>("copying b", async { std::panic::panic_any(7) }).await.unwrap_err();
        assert!(error.to_string().contains("a panic without a message"), "{error}");
        assert_eq!(catch_panic("copying c", async { Ok(7) }).await.unwrap(), 7);
    }
}
