//! HTTP/2 connections that are closed at their first request by a GOAWAY that processed nothing.

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Length of the client preface.
const PREFACE_BYTES: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();
/// Length of a frame header: length, type, flags and stream.
const FRAME_HEADER_BYTES: usize = 9;
const HEADERS: u8 = 1;
/// Empty SETTINGS, and the acknowledgement of the client's SETTINGS.
const SETTINGS: [u8; 2 * FRAME_HEADER_BYTES] = [0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 4, 1, 0, 0, 0, 0];
/// GOAWAY with last stream 0 and NO_ERROR.
const GOAWAY: [u8; FRAME_HEADER_BYTES + 8] = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Waits for a request and sends GOAWAY.
pub(super) async fn refuse_connection(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let _ = wait_for_request(&mut stream).await;
    let _ = stream.write_all(&GOAWAY).await;
    let _ = stream.flush().await;
    // Wait until the client has read it and closed the connection.
    while stream.read(&mut [0; 1024]).await.is_ok_and(|read| read > 0) {}
}

async fn wait_for_request(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> std::io::Result<()> {
    stream.read_exact(&mut [0; PREFACE_BYTES]).await?;
    stream.write_all(&SETTINGS).await?;
    stream.flush().await?;
    loop {
        let mut head = [0; FRAME_HEADER_BYTES];
        stream.read_exact(&mut head).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        tokio::io::copy(&mut (&mut *stream).take(length.into()), &mut tokio::io::sink()).await?;
        if head[3] == HEADERS {
            return Ok(());
        }
    }
}
