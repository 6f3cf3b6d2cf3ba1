//! HTTP relay.

mod pool;

pub use pool::Pool;
use tokio::net::TcpStream;

use crate::{connection::Connection, detect::First, forward::opaque};

pub async fn serve(connection: Connection, client: TcpStream, first: First) {
    opaque::serve(connection, client, first).await;
}
