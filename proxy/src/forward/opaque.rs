//! Bytes relayed untouched, both ways.

use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::{accept, connection::Connection, detect::First, upstream};

pub async fn serve(connection: Connection, mut client: TcpStream, first: First) {
    let upstream = match first.upstream {
        Some(upstream) => Ok(upstream),
        None => upstream::connect(&connection.worker.shared, connection.original.0).await,
    };
    let Ok(mut upstream) = upstream else {
        return accept::reset(client);
    };
    let _ = upstream.stream.write_all(first.client_bytes.filled()).await;
    let _ = tokio::io::copy_bidirectional(&mut client, &mut upstream.stream).await;
}
