//! What acts: for root on the node, on the socket, never reachable over TCP.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Path, Query, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::{
    guard::commands::{Command, Commands, Unclear},
    kernel::kill_switch::{KillSwitch, Source},
    kill_switch::{Status, verb},
};

/// Longest body of an order, in bytes.
const ORDER: usize = 4096;

/// What acts, for root on the node: never reachable over TCP.
pub fn orders(switch: Arc<KillSwitch>, commands: Commands) -> Router {
    let methods = get(kill_switch).post(switch_kill_switch).layer(DefaultBodyLimit::max(ORDER));
    let switch = Router::new().route("/kill-switch", methods).with_state(switch);
    let containers = Router::new()
        .route("/release", post(release))
        .route("/resume", post(resume))
        .route("/destinations", get(destinations))
        .route("/containers/{id}/destinations", get(destinations_of))
        .with_state(commands);
    switch.merge(containers)
}

/// The container that is meant.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    container: String,
}

async fn release(State(commands): State<Commands>, Query(which): Query<Which>) -> Response {
    let (answer, answered) = oneshot::channel();
    ask(&commands, Command::Release(which.container, answer), answered).await
}

async fn resume(State(commands): State<Commands>) -> Response {
    let (answer, answered) = oneshot::channel();
    ask(&commands, Command::Resume(answer), answered).await
}

async fn destinations(State(commands): State<Commands>, Query(which): Query<Which>) -> Response {
    let (answer, answered) = oneshot::channel();
    ask(&commands, Command::Destinations(which.container, answer), answered).await
}

async fn destinations_of(State(commands): State<Commands>, Path(id): Path<String>) -> Response {
    let (answer, answered) = oneshot::channel();
    ask(&commands, Command::Destinations(id, answer), answered).await
}

/// Hands a command to the guard and answers what it says.
async fn ask<T: Serialize>(
    commands: &Commands,
    command: Command,
    answered: oneshot::Receiver<Result<T, Unclear>>,
) -> Response {
    if commands.send(command).await.is_err() {
        return (StatusCode::SERVICE_UNAVAILABLE, "the agent is ending\n").into_response();
    }
    match answered.await {
        Ok(Ok(said)) => Json(said).into_response(),
        Ok(Err(unclear @ Unclear::Unknown(_))) => (StatusCode::NOT_FOUND, format!("{unclear}\n")).into_response(),
        Ok(Err(unclear @ Unclear::Several(..))) => (StatusCode::CONFLICT, format!("{unclear}\n")).into_response(),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the agent is ending\n").into_response(),
    }
}

async fn kill_switch(State(switch): State<Arc<KillSwitch>>) -> Response {
    match Status::of(&switch) {
        Ok(status) => Json(status).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

/// What is posted to `/kill-switch`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    engaged: bool,
    who: Option<String>,
    reason: Option<String>,
}

/// Engages or releases it for the operator, and answers how it then stands: others may engage it still.
async fn switch_kill_switch(state: State<Arc<KillSwitch>>, body: Bytes) -> Response {
    let Order { engaged, who, reason } = match serde_json::from_slice(&body) {
        Ok(order) => order,
        Err(error) => {
            let said = format!(
                "expected {{\"engaged\": true or false, \"who\": \"...\", \"reason\": \"...\"}}, the latter two optional: {error}\n"
            );
            return (StatusCode::BAD_REQUEST, said).into_response();
        }
    };
    let done = if engaged {
        let who = verb::who("the socket", who.as_deref().unwrap_or("root"), reason.as_deref());
        state.engage(Source::Operator, &who)
    } else {
        state.release(Source::Operator)
    };
    match done {
        Ok(()) => kill_switch(state).await,
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}
