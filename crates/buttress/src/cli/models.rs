//! `buttress model …`

use buttress_core::{Code, Error};
use http::Method;

use super::{
    args::{ModelCommand, Output},
    show,
};
use crate::client::{Client, segment};

pub async fn run(command: ModelCommand) -> Result<(), Error> {
    match command {
        ModelCommand::Push { name, file, server } => {
            let bytes = super::functions::read_file(&file, Code::MODEL_INVALID)?;
            let answer = Client::new(&server.server)?
                .send_bytes(Method::PUT, &format!("/v1/models/{}", segment(&name)), bytes.into())
                .await?;
            match server.output {
                Output::Json => show::json(&answer).map_err(show::output_failed)?,
                Output::Table => eprintln!(
                    "model {name} is now generation {} ({})\nnext: buttress model list",
                    show::cell(&answer["generation"]),
                    show::cell(&answer["digest"])
                ),
            }
        }
        ModelCommand::List { server } => {
            let answer = Client::new(&server.server)?.get("/v1/models").await?;
            match server.output {
                Output::Json => show::json(&answer).map_err(show::output_failed)?,
                Output::Table => {
                    let list = answer["models"].as_array().cloned().unwrap_or_default();
                    let rows: Vec<Vec<String>> = list
                        .iter()
                        .map(|m| {
                            ["name", "generation", "kind", "size", "digest"]
                                .iter()
                                .map(|k| show::cell(&m[*k]))
                                .collect()
                        })
                        .collect();
                    show::table(&["MODEL", "GENERATION", "KIND", "BYTES", "DIGEST"], &rows)
                        .map_err(show::output_failed)?;
                }
            }
        }
    }
    Ok(())
}
