//! `futures_io::{AsyncRead, AsyncWrite}` for connections and their halves, and `AsyncBufRead` for [`Buffered`].

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_io::{AsyncBufRead, AsyncRead, AsyncWrite};

use super::Buffered;
use crate::connection::{Connection, ReadHalf, WriteHalf};

macro_rules! reads {
    ($name:ty) => {
        impl AsyncRead for $name {
            fn poll_read(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &mut [u8],
            ) -> Poll<io::Result<usize>> {
                let mut filled = 0;
                super::poll_read(self.link(), cx, buf.len(), |bytes| {
                    buf[filled..filled + bytes.len()].copy_from_slice(bytes);
                    filled += bytes.len();
                })
            }
        }
    };
}

macro_rules! writes {
    ($name:ty) => {
        impl AsyncWrite for $name {
            fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
                super::poll_write(self.link(), cx, buf)
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bufs: &[IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                super::poll_write_vectored(self.link(), cx, bufs)
            }

            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                super::poll_flush(self.link(), cx)
            }

            /// Ends this side's direction, as `finish` does; dropping the connection closes it.
            fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                super::poll_finish(self.link(), cx)
            }
        }
    };
}

macro_rules! shows {
    ($name:ty) => {
        impl AsyncRead for Buffered<$name> {
            fn poll_read(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &mut [u8],
            ) -> Poll<io::Result<usize>> {
                let room = buf.len();
                self.get_mut().poll_take(cx, room, |bytes| buf[..bytes.len()].copy_from_slice(bytes))
            }
        }

        impl AsyncBufRead for Buffered<$name> {
            fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
                self.get_mut().poll_show(cx)
            }

            fn consume(self: Pin<&mut Self>, amount: usize) {
                self.get_mut().advance(amount);
            }
        }
    };
}

reads!(Connection);
reads!(ReadHalf);
shows!(Connection);
shows!(ReadHalf);
writes!(Connection);
writes!(WriteHalf);
writes!(Buffered<Connection>);
