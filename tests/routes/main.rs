//! Routes as an application meets them: real servers in a namespace, a captured client, and what
//! arrives where, over HTTP/1 and HTTP/2 alike.

#[path = "../support/mod.rs"]
mod support;

mod answers;
mod edits;
mod matching;
mod mirrors;
mod services;
mod site;
