//! A TCP proxy that can lose what the server says: how an answer gets lost after the server has acted.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
};

pub(super) struct Proxy {
    pub(super) port: u16,
    /// Connections of earlier generations than this are muted.
    muted: Arc<AtomicU32>,
    /// The generation of new connections; each change ends all that there are.
    resets: watch::Sender<u32>,
}

impl Proxy {
    pub(super) async fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let muted = Arc::new(AtomicU32::new(0));
        let resets = watch::Sender::new(0);
        let (flag, reset) = (Arc::clone(&muted), resets.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (muted, mut reset) = (Arc::clone(&flag), reset.subscribe());
                let generation = *reset.borrow_and_update();
                let is_muted = move || generation < muted.load(Ordering::SeqCst);
                tokio::spawn(async move {
                    tokio::select! {
                        () = carry(client, server, is_muted) => {}
                        _ = reset.changed() => {}
                    }
                });
            }
        });
        Self { port, muted, resets }
    }

    /// From now on nothing of what the server says arrives.
    pub(super) fn mute(&self) {
        self.muted.store(*self.resets.borrow() + 1, Ordering::SeqCst);
    }

    /// Ends all connections; new ones are whole again.
    pub(super) fn reset(&self) {
        self.resets.send_modify(|resets| *resets += 1);
    }

    pub(super) fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }
}

async fn carry(client: TcpStream, server: SocketAddr, is_muted: impl Fn() -> bool) {
    let Ok(server) = TcpStream::connect(server).await else { return };
    let ((mut client_in, mut client_out), (mut server_in, mut server_out)) =
        (client.into_split(), server.into_split());
    let up = async { tokio::io::copy(&mut client_in, &mut server_out).await.map(drop) };
    let down = async {
        let mut buffer = vec![0; 65_536];
        loop {
            let read = server_in.read(&mut buffer).await?;
            if read == 0 {
                return Ok(());
            }
            if !is_muted() {
                client_out.write_all(&buffer[..read]).await?;
            }
        }
    };
    let _: Result<((), ()), std::io::Error> = tokio::try_join!(up, down);
}
