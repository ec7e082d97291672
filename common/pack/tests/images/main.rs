//! Layers in, image out: what comes out is read back and compared.

mod contents;
mod failures;
mod layers;
mod limits;
mod oracle;
mod support;
