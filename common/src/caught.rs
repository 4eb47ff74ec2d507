//! Converts panics into errors, so that a panicking task does not take its slot, lease or connection with it.

use std::any::Any;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt as _;

use crate::error::{Class, Error, Result};
use crate::printable::printable;

/// Runs a future and converts a panic into an error of the operation `tried` with the panic's message.
pub async fn caught<T>(tried: &str, future: impl Future<Output = Result<T>>) -> Result<T> {
    AssertUnwindSafe(future).catch_unwind().await.unwrap_or_else(|panic| {
        let detail = format!("the program failed at it: {}", printable(panic_message(&*panic)));
        Err(Error::new(Class::Local, tried, detail).hint("please report this"))
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
        let error = caught::<()>("copying a", async { panic!("index {index} is out of bounds") }).await.unwrap_err();
        assert_eq!(error.class(), Class::Local);
        assert!(error.to_string().contains("copying a: the program failed at it: index 7 is out of bounds"), "{error}");
        let error = caught::<()>("copying b", async { std::panic::panic_any(7) }).await.unwrap_err();
        assert!(error.to_string().contains("a panic without a message"), "{error}");
        assert_eq!(caught("copying c", async { Ok(7) }).await.unwrap(), 7);
    }
}
