//! `mistralrs-server`: the command line's door.
//!
//! Exit status: 0 after an orderly end, 1 if serving failed, 2 if flags, configuration or a local path were wrong and nothing
//! was bound or loaded, 130 if a second signal cut draining short.

use std::io::{self, IsTerminal, Write};
use std::num::NonZeroUsize;
use std::process::ExitCode;

use anyhow::Context;
#[cfg(feature = "http-mcp-stream")]
use mistralrs_mcp::config::GatewayConfig;
use mistralrs_server::bench::{self, BenchPlan};
#[cfg(feature = "http-mcp-stream")]
use mistralrs_server::cli::McpCommand;
use mistralrs_server::cli::{CacheCommand, Cli, Command, ConfigCommand};
use mistralrs_server::config::{self, Configuration, Environment, HubSettings, LogFormat, ServerSettings, Settings};
use mistralrs_server::hub::{self, LocatedPair};
#[cfg(feature = "http-mcp-stream")]
use mistralrs_server::mcp_command::{self, PendingEdit};
use mistralrs_server::process::{self, PendingModel};
use tokio::runtime::{Builder, Runtime};
use tracing_subscriber::EnvFilter;

/// Status where the command line or the configuration is wrong, as clap has it.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let cli = Cli::from_process();
    let plan = match Plan::new(&cli) {
        Ok(plan) => plan,
        Err(error) => return report(&error, USAGE),
    };
    match plan.execute() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error, 1),
    }
}

fn report(error: &anyhow::Error, status: u8) -> ExitCode {
    let mut message = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        // Most messages tell their cause already.
        if !message.contains(&cause) {
            message = format!("{message}: {cause}");
        }
    }
    eprintln!("error: {message}");
    ExitCode::from(status)
}

/// What was asked for, checked as far as that goes without a port or a model.
enum Plan {
    Serve {
        settings: Box<Settings>,
        model: Option<Box<PendingModel>>,
    },
    Print(String),
    Completions(clap_complete::Shell),
    Cache(CacheCommand, HubSettings),
    Bench(Box<BenchPlan>, ServerSettings),
    #[cfg(feature = "http-mcp-stream")]
    Mcp(McpCommand, Box<GatewayConfig>),
    #[cfg(feature = "http-mcp-stream")]
    EditServers(PendingEdit),
}

impl Plan {
    fn new(cli: &Cli) -> anyhow::Result<Self> {
        match &cli.command {
            Some(Command::Completions { shell }) => return Ok(Self::Completions(*shell)),
            Some(Command::Config(ConfigCommand::Schema)) => return Ok(Self::Print(config::json_schema())),
            _ => {}
        }
        #[cfg(feature = "http-mcp-stream")]
        if let Some(Command::Mcp(command)) = &cli.command
            && let Some(change) = command.change()
        {
            let edit = PendingEdit::new(&change, cli.sources(), Environment::from_process())?;
            return Ok(Self::EditServers(edit));
        }
        let configuration = Configuration::load(cli.sources(), Environment::from_process())?;
        #[cfg(feature = "http-mcp-stream")]
        if let Some(Command::Mcp(command)) = &cli.command
            && !matches!(command, McpCommand::Serve { .. })
        {
            let mut gateway = configuration.gateway()?;
            mcp_command::select(command, &mut gateway)?;
            return Ok(Self::Mcp(command.clone(), Box::new(gateway)));
        }
        let settings = configuration.settings()?;
        match &cli.command {
            Some(Command::Config(_)) => Ok(Self::Print(configuration.to_redacted_toml())),
            Some(Command::Cache(command)) => Ok(Self::Cache(command.clone(), configuration.hub()?)),
            Some(Command::Bench(flags)) => {
                let plan = BenchPlan::new(flags, settings.model, cli.seed())?;
                Ok(Self::Bench(Box::new(plan), settings.server))
            }
            #[cfg(feature = "http-mcp-stream")]
            Some(Command::Mcp(_)) => Self::serve(Settings { model: None, ..settings }),
            _ => Self::serve(settings),
        }
    }

    fn serve(settings: Settings) -> anyhow::Result<Self> {
        settings.check_serves_something()?;
        let model = match settings.model.clone() {
            Some(model) => Some(Box::new(PendingModel { located: LocatedPair::of(&model)?, settings: model })),
            None => None,
        };
        Ok(Self::Serve { settings: Box::new(settings), model })
    }

    fn execute(self) -> anyhow::Result<()> {
        match self {
            Self::Print(text) => print(&text)?,
            Self::Completions(shell) => print(&Cli::completions(shell))?,
            Self::Cache(command, hub) => print(&runtime()?.block_on(cache(&command, &hub))?)?,
            Self::Bench(plan, server) => {
                let runtime = prepare(&server)?;
                let outcome = runtime.block_on(measure(*plan));
                runtime.shutdown_background();
                outcome?;
            }
            #[cfg(feature = "http-mcp-stream")]
            Self::Mcp(command, gateway) => {
                if matches!(command, McpCommand::Logs { .. }) {
                    show_servers_words();
                }
                install_tls()?;
                let report = runtime()?.block_on(mcp_command::run(&command, *gateway))?;
                print(&report.text)?;
                anyhow::ensure!(report.num_failed == 0, "{} of the servers could not be connected", report.num_failed);
            }
            #[cfg(feature = "http-mcp-stream")]
            Self::EditServers(edit) => {
                for warning in &edit.warnings {
                    eprintln!("warning: {warning}");
                }
                print(&edit.commit()?)?;
            }
            Self::Serve { settings, model } => {
                let runtime = prepare(&settings.server)?;
                let outcome = runtime.block_on(process::run(*settings, model.map(|model| *model)));
                // A model that is still being read from the disk when the process is told to end is not waited for.
                runtime.shutdown_background();
                outcome?;
            }
        }
        Ok(())
    }
}

/// What comes before a model or a connection: the log, the compute threads' number, TLS, the runtime.
fn prepare(settings: &ServerSettings) -> anyhow::Result<Runtime> {
    start_log(settings)?;
    set_threads(settings);
    install_tls()?;
    runtime()
}

fn install_tls() -> anyhow::Result<()> {
    let installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
    installed.ok().context("a TLS provider is installed already")
}

/// Reports even if nothing was answered: the report says why.
async fn measure(plan: BenchPlan) -> anyhow::Result<()> {
    let (format, output) = (plan.format, plan.output.clone());
    let report = bench::run(plan).await?;
    match &output {
        Some(path) => std::fs::write(path, report.render(format))
            .with_context(|| format!("cannot write the report to `{}`", path.display()))?,
        None => print(&report.render(format))?,
    }
    report.failure().map_or(Ok(()), |failure| Err(anyhow::anyhow!(failure)))
}

/// To standard output. Who stops reading, as `head` does, has seen enough.
fn print(text: &str) -> anyhow::Result<()> {
    match writeln!(io::stdout(), "{}", text.trim_end()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

async fn cache(command: &CacheCommand, hub: &HubSettings) -> Result<String, hub::cache::CacheError> {
    match command {
        CacheCommand::List => hub::cache::list(hub).await,
        CacheCommand::Delete { repo } => hub::cache::delete(hub, repo).await,
    }
}

fn runtime() -> anyhow::Result<Runtime> {
    Builder::new_multi_thread().enable_all().build().context("cannot start the runtime")
}

fn start_log(settings: &ServerSettings) -> anyhow::Result<()> {
    let filter = match settings.log.as_str() {
        // rmcp tells of every request at this level.
        "info" => EnvFilter::try_new("info,rmcp=warn")?,
        log => EnvFilter::try_new(log)?,
    };
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(io::stderr().is_terminal());
    match settings.log_format {
        LogFormat::Text => log.init(),
        // Flat: shippers of logs look for `request_id`, not for `fields.request_id`.
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    Ok(())
}

/// What upstream servers write and log, to standard output: that is what was asked for.
#[cfg(feature = "http-mcp-stream")]
fn show_servers_words() {
    let filter = EnvFilter::new("warn,mistralrs_mcp::upstream=debug");
    tracing_subscriber::fmt().with_env_filter(filter).with_target(false).with_ansi(io::stdout().is_terminal()).init();
}

/// The compute pools of candle and rayon are sized by the environment only, when they are first used. Two threads on one core
/// share the units that kernels keep busy: by default there is one for each core.
fn set_threads(settings: &ServerSettings) {
    let default = num_cpus::get_physical().min(num_cpus::get());
    let threads = settings.threads.map_or(default, NonZeroUsize::get).to_string();
    for variable in ["RAYON_NUM_THREADS", "CANDLE_NUM_THREADS"] {
        // SAFETY: the process has one thread yet: the runtime starts after this, the compute pools later.
        unsafe { std::env::set_var(variable, &threads) };
    }
}
