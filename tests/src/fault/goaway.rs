//! A connection of HTTP/2 that is closed to its first request: the server says GOAWAY, and that it took nothing.

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// What a client begins with.
const PREFACE: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();
/// A frame's head: length, type, flags and stream.
const HEAD: usize = 9;
const HEADERS: u8 = 1;
/// Empty SETTINGS, and the acknowledgement of the client's.
const SETTINGS: [u8; 2 * HEAD] = [0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 4, 1, 0, 0, 0, 0];
/// GOAWAY: the last stream that was taken is 0, and nothing is wrong.
const GOAWAY: [u8; HEAD + 8] = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Waits for a request, and takes leave.
pub(super) async fn leave(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let _ = until_request(&mut stream).await;
    let _ = stream.write_all(&GOAWAY).await;
    let _ = stream.flush().await;
    // Until the client has read it and closes the connection.
    while stream.read(&mut [0; 1024]).await.is_ok_and(|read| read > 0) {}
}

async fn until_request(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> std::io::Result<()> {
    stream.read_exact(&mut [0; PREFACE]).await?;
    stream.write_all(&SETTINGS).await?;
    stream.flush().await?;
    loop {
        let mut head = [0; HEAD];
        stream.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        tokio::io::copy(&mut (&mut *stream).take(length.into()), &mut tokio::io::sink()).await?;
        if head[3] == HEADERS {
            return Ok(());
        }
    }
}
