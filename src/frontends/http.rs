//! REST on the public listener, and the router that carries WebSocket and SSE beside it.
//!
//! ```text
//! request -> guard: request id, URL length, Host, Origin, drain -> route -> access: token, role -> handler
//! ```
//!
//! | file | what |
//! |---|---|
//! | [`routes`] | the one table of routes, from which the router and `/openapi.json` are both built |
//! | [`guard`] | what is checked before any handler, and what every answer carries |
//! | [`body`] | JSON bodies in, spliced bytes out |
//! | [`events`] | history and single events |
//! | [`sims`] | what is known of SIMs |
//! | [`lookup`] | the documented paths of the API, through the gateway |
//! | [`stream`] | the stream as a whole, subscribers, tickets |
//! | [`webhooks`] | endpoints, deliveries, replays |
//! | [`openapi`] | the document |
//! | [`landing`] | the page at `/` |

pub mod body;
pub mod events;
pub mod guard;
pub mod landing;
pub mod lookup;
pub mod openapi;
pub mod routes;
pub mod sims;
pub mod stream;
mod trace;
pub mod webhooks;

use std::sync::Arc;

use axum::{
    Extension, Router,
    extract::{Request, State},
    middleware::{Next, from_fn_with_state},
    response::Response,
    routing::MethodRouter,
};

use super::{ApiError, Code, Context};
use crate::auth::Principal;
use routes::{Access, Route};

/// The public listener's router. `websocket` and `sse` serve the paths that the [table](routes::TABLE) says they do
/// and authenticate by themselves, since browsers can't give them a header; the guard covers them too.
pub fn router(context: Context, websocket: Router, sse: Router) -> Router {
    let guard = Arc::new(guard::Guard::new(context.clone()));
    routes::TABLE
        .iter()
        .filter_map(|route| route.handler.map(|handler| (route, handler())))
        .fold(Router::new(), |router, (route, handler)| {
            router.route(route.path, protect(&context, route, handler))
        })
        .layer(Extension(events::InFlight::default()))
        .with_state(context)
        .merge(websocket)
        .merge(sse)
        .fallback(unknown_path)
        .method_not_allowed_fallback(unknown_method)
        .layer(from_fn_with_state(guard, guard::run))
}

/// The error of a path that nothing serves.
pub async fn unknown_path() -> ApiError {
    ApiError::not_found("nothing is served at this path").hint("see / and /openapi.json")
}

/// The error of a method that a path does not serve; axum adds `Allow`.
pub async fn unknown_method() -> ApiError {
    ApiError::new(Code::MethodNotAllowed, "this path does not serve that method")
}

fn protect(
    context: &Context,
    route: &'static Route,
    handler: MethodRouter<Context>,
) -> MethodRouter<Context> {
    match route.access {
        Access::Public | Access::Own => handler,
        // route_layer, so that a wrong method is told so without a token.
        access => handler.route_layer(from_fn_with_state((context.clone(), access), authorize)),
    }
}

/// Finds out who is asking; the handler gets it as an extension.
async fn authorize(
    State((context, access)): State<(Context, Access)>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let principal: Arc<Principal> = context.authenticate(request.headers())?;
    access.check(&principal)?;
    request.extensions_mut().insert(principal);
    Ok(next.run(request).await)
}

#[cfg(test)]
mod tests;
