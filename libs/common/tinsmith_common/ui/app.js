// Reads both services every few seconds and shows what they say. Text from them is only ever set as text.

import { drawChart, format } from "./chart.js";

const EVERY_MS = 3000;
const WINDOW_MS = 30000;
const KEY = "tinsmith-key";
const TABLE_STEPS = 50;

const $ = (selector) => document.querySelector(selector);
const state = { training: null, sampling: null, run: null, steps: [], reports: [], samples: [], timer: 0, turn: 0 };

class Refused extends Error {}

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value) node.setAttribute(name, value);
  node.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return node;
}

async function read(path) {
  const headers = { "X-API-Key": sessionStorage.getItem(KEY) };
  const answer = await fetch(`api/v1/ui/${path}`, { headers, cache: "no-store", signal: AbortSignal.timeout(15000) });
  if (answer.ok) return answer.json();
  const body = await answer.text();
  let reason = body;
  try { reason = JSON.parse(body).detail ?? body; } catch { /* not ours: say it as it is */ }
  if (answer.status === 401) throw new Refused(reason);
  throw new Error(`${answer.status} ${String(reason).slice(0, 300)}`);
}

async function poll() {
  clearTimeout(state.timer);
  const turn = ++state.turn; // a newer poll, another key or another choice makes this one void
  const results = await Promise.allSettled([read("training"), read("sampling")]);
  if (turn !== state.turn) return;
  const refused = results.find((result) => result.reason instanceof Refused);
  if (refused) return askForKey(refused.reason.message);
  const names = ["train", "sample"];
  const problems = results.flatMap((result, index) =>
    result.status === "rejected" ? [`The ${names[index]} service does not answer: ${result.reason.message}`] : []);
  if (results[0].value) state.training = results[0].value;
  if (results[1].value) state.sampling = results[1].value;
  if (results[0].value || results[1].value) remember(results[0].value, results[1].value);
  if (!state.run) state.run = state.training?.runs[0]?.run_id ?? null;
  if (state.run && results[0].value) {
    try { await readHistory(turn); } catch (error) { problems.push(`The curves could not be read: ${error.message}`); }
    if (turn !== state.turn) return;
  }
  showProblems(problems);
  render(problems.length > 0);
  state.timer = setTimeout(poll, EVERY_MS);
}

async function readHistory(turn) {
  const { steps, reports } = state;
  const step = steps.length ? steps[steps.length - 1].number : 0;
  const at = reports.reduce((latest, report) => (report.at > latest ? report.at : latest), "");
  const since = at ? `&reported_after=${encodeURIComponent(at)}` : "";
  const history = await read(`runs/${encodeURIComponent(state.run)}/history?after=${step}${since}`);
  if (turn !== state.turn) return;
  steps.push(...history.steps);
  reports.push(...history.reports);
}

// -- what changes in time

function remember(training, sampling) {
  const engines = (sampling?.replicas ?? []).flatMap((replica) => replica.engines);
  const sum = (name) => engines.reduce((total, engine) => total + engine[name], 0);
  const now = Date.now();
  state.samples.push({
    at: now, trained: training?.trained_tokens ?? null, replicas: (sampling?.replicas ?? []).map((r) => r.replica_id).join(),
    sampled: sampling ? sum("sampled_tokens") : null, prompt: sum("prompt_tokens"), cached: sum("cached_tokens"),
    firsts: sum("first_token_count"), firstSeconds: sum("first_token_seconds"),
  });
  state.samples = state.samples.filter((sample) => now - sample.at <= WINDOW_MS);
}

/** The newest sample, and the growth of a figure since the oldest; null while there is only one or after a restart. */
function growth(name) {
  const newest = state.samples[state.samples.length - 1];
  const oldest = state.samples.find((sample) => sample[name] !== null && sample.replicas === newest.replicas);
  if (!oldest || oldest === newest || newest[name] === null || newest[name] < oldest[name]) return null;
  return { value: newest[name] - oldest[name], seconds: (newest.at - oldest.at) / 1000 };
}

function rate(name) {
  const grown = growth(name);
  return grown ? format(Math.round((grown.value / grown.seconds) * 10) / 10) : "–";
}

function share(part, whole) {
  const parts = growth(part), wholes = growth(whole);
  return parts && wholes && wholes.value > 0 ? parts.value / wholes.value : null;
}

// -- rendering

function render(stale) {
  const { training, sampling } = state;
  const who = training ?? sampling;
  $("#main").hidden = !who;
  $("#forget").hidden = false;
  if (!who) return;
  $("#who").textContent = who.operator ? `${who.owner} (operator: everybody's work is shown)` : who.owner;
  $("#updated").textContent = stale ? "not up to date" : `updated ${new Date().toLocaleTimeString()}`;
  for (const cell of document.querySelectorAll(".operator")) cell.classList.toggle("alone", !who.operator);
  renderTiles();
  if (training) renderRuns(training);
  renderRun();
  if (training) rows("#lanes", training.lanes.map((lane) => [
    code(lane.run_id), lane.base_model, mark(lane.state, { queued: "good", running: "good", stalled: "warn", closing: "warn" }, lane.missing === null ? "" : `: operation ${lane.missing} has not arrived`),
    number(lane.waiting), number(lane.waiting_tokens),
  ]), "No lanes are open: no model is loaded.");
  if (sampling) renderSampling(sampling);
  renderErrors([...(training?.failures ?? []), ...(sampling?.failures ?? [])], who.operator);
}

function renderTiles() {
  const { training, sampling } = state;
  const replicas = (sampling?.replicas ?? []).filter((replica) => replica.state !== "silent");
  const engines = replicas.flatMap((replica) => replica.engines);
  const sum = (name) => engines.reduce((total, engine) => total + engine[name], 0);
  const hits = share("cached", "prompt"), first = share("firstSeconds", "firsts");
  const tiles = [
    ["Sampled", rate("sampled"), "tokens/s"],
    ...(training?.operator ? [["Trained", rate("trained"), "tokens/s"]] : []),
    ["In the queue", replicas.reduce((total, replica) => total + replica.queue, 0), "samples"],
    ["In the engines", `${sum("running_requests")} / ${sum("waiting_requests")}`, "running / waiting"],
    ["Prompts from cache", hits === null ? "–" : (hits * 100).toFixed(1), "%"],
    ["Time to first token", first === null ? "–" : duration(first), "mean"],
    ["Adapters resident", sum("resident_adapters"), ""],
    ["Lanes with work", (training?.lanes ?? []).filter((lane) => lane.waiting > 0).length, `of ${training?.lanes.length ?? 0}`],
  ];
  $("#tiles").replaceChildren(...tiles.map(([name, value, unit]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, value, " ", element("small", {}, unit)))));
}

function renderRuns(training) {
  $("#runs-note").textContent = training.runs_total > training.runs.length
    ? `The newest ${training.runs.length} of ${training.runs_total}.` : "";
  const focused = document.activeElement?.dataset?.run;
  rows("#runs", training.runs.map((run) => {
    const button = element("button", { type: "button", "data-run": run.run_id }, run.run_id);
    button.onclick = () => choose(run.run_id);
    const cells = [
      button, element("td", { class: "name" }, run.display_name ?? ""), run.owner, run.base_model, number(run.rank),
      mark(run.state, { loaded: "good", ended: "", lost: "bad" }), number(run.last_step?.number ?? 0),
      number(format(meanLoss(run.last_step))), ago(run.last_request_at),
    ];
    cells.selected = run.run_id === state.run;
    return cells;
  }), "No training run yet. Make one with create_lora_training_client.");
  $("#runs tbody").querySelectorAll("tr").forEach((row) => row.children[2]?.classList.toggle("alone", !training.operator));
  if (focused) document.querySelector(`[data-run="${CSS.escape(focused)}"]`)?.focus();
}

function choose(run) {
  state.run = run;
  state.steps = [];
  state.reports = [];
  renderRuns(state.training);
  renderRun();
  poll();
}

/** Cross-entropy: per weight, which is the mean negative log-likelihood; other losses: per token. */
function meanLoss(step) {
  if (!step || step.loss_sum === null) return null;
  const by = step.weight_sum ?? step.tokens;
  return by > 0 ? step.loss_sum / by : null;
}

function renderRun() {
  const section = $("#run");
  section.hidden = !state.run;
  if (!state.run) return;
  $("#run-title").textContent = `Run ${state.run}`;
  const { steps } = state;
  const of = (value) => steps.map((step) => ({ x: step.number, y: value(step) ?? NaN }));
  const loss = $("#loss select").value;
  const name = [...new Set(steps.map((step) => step.loss).filter(Boolean))].join(", ");
  const per = steps.some((step) => step.weight_sum !== null) ? "per unit of weight" : "per token";
  chart("#loss", of(loss === "loss_sum" ? (step) => step.loss_sum : meanLoss), loss === "loss_sum" ? "loss, sum" : "loss, mean",
    name ? `${name}: ${loss === "loss_sum" ? "loss:sum as clients get it, added up over the passes of a step" : per}. By optimizer step.` : "");
  renderReward(of);
  const other = $("#other select");
  const label = other.selectedOptions[0].textContent;
  chart("#other", of((step) => step[other.value]), label, { grad_norm: "L2, before clipping.", learning_rate: "", tokens: "Of the inputs of its passes." }[other.value]);
  rows("#steps", steps.slice(-TABLE_STEPS).reverse().map((step) => [
    number(step.number), clock(step.at), step.loss ?? "", number(exact(step.loss_sum)), number(exact(meanLoss(step))),
    number(exact(step.advantage_mean)), number(exact(step.grad_norm)), number(format(step.learning_rate)), number(step.datums), number(step.tokens),
  ]), "No optimizer step yet.");
}

function renderReward(of) {
  const names = [...new Set(state.reports.map((report) => report.name))];
  const select = $("#reward select");
  const wanted = select.value;
  select.replaceChildren(
    ...names.map((name) => element("option", { value: `report:${name}` }, name)),
    element("option", { value: "advantage" }, "mean advantage"));
  const options = [...select.options].map((option) => option.value);
  const preferred = options.find((value) => /reward/i.test(value)) ?? options[0];
  select.value = state.chosenReward && options.includes(wanted) ? wanted : preferred;
  if (select.value === "advantage") {
    chart("#reward", of((step) => step.advantage_mean), "mean advantage",
      "The protocol carries no rewards. Shown is the mean of the advantages that are not 0, which lies near 0 where clients centre them. "
      + "A client may report its reward: see docs/watching.md.");
    return;
  }
  const name = select.value.slice("report:".length);
  const points = state.reports.filter((report) => report.name === name)
    .map((report) => ({ x: report.step ?? report.number, y: report.value }));
  chart("#reward", points, name, "As the client reported it, by the client's own steps.");
}

function chart(selector, points, name, note) {
  const figure = $(selector);
  drawChart(figure.querySelector("svg"), points, name);
  figure.querySelector(".note").textContent = note;
}

function renderSampling(sampling) {
  rows("#replicas", sampling.replicas.flatMap((replica) => replica.engines.map((engine) => [
    code(replica.replica_id),
    mark(replica.state, { ready: "good", starting: "warn", silent: "bad" }, replica.state === "silent" ? ` since ${clock(replica.reported_at)}` : ""),
    engine.base_model, number(replica.queue), number(engine.running_requests), number(engine.waiting_requests), number(engine.sampled_tokens),
    number(engine.prompt_tokens ? `${((engine.cached_tokens / engine.prompt_tokens) * 100).toFixed(1)} %` : "–"),
    number(engine.first_token_count ? duration(engine.first_token_seconds / engine.first_token_count) : "–"),
    number(engine.resident_adapters), ago(replica.started_at),
  ])), "No replica of the sample service has reported.");
  const others = sampling.replicas.reduce((total, replica) => total + replica.other_adapters, 0);
  $("#adapters-note").textContent = others ? `${others} more of other accounts.` : "";
  rows("#adapters", sampling.replicas.flatMap((replica) => replica.adapters.map((adapter) => [
    code(adapter.weights), adapter.base_model, code(replica.replica_id), adapter.name,
    mark(adapter.state, { resident: "good", loading: "warn" }), number(`${adapter.users} requests`),
  ])), "No adapter is in an engine. One is loaded by the first sample that needs it.");
}

function renderErrors(failures, operator) {
  failures.sort((a, b) => (a.at < b.at ? 1 : -1));
  rows("#errors", failures.slice(0, 50).map((failure) => [
    clock(failure.at), failure.request_type, code(failure.request_id),
    mark(failure.category, { user: "warn", server: "bad" }, operator ? ` (${failure.owner})` : ""), wide(failure.error),
  ]), "Nothing has failed lately.");
}

function rows(selector, table, nothing) {
  const body = $(`${selector} tbody`);
  const columns = $(`${selector} thead tr`).children.length;
  if (!table.length) {
    body.replaceChildren(element("tr", {}, element("td", { class: "empty", colspan: columns }, nothing)));
    return;
  }
  body.replaceChildren(...table.map((cells) => element("tr", { "aria-current": cells.selected ? "true" : "" },
    ...cells.map((cell) => (cell instanceof HTMLTableCellElement ? cell : element("td", {}, cell))))));
}

const number = (value) => element("td", { class: "number" }, value);
const wide = (value) => element("td", { class: "text" }, value);
const code = (value) => element("code", {}, value);
const mark = (value, kinds, more = "") => element("span", { class: kinds[value] ?? "" }, value + more);
const clock = (time) => new Date(time).toLocaleTimeString();
const exact = (value) => (value === null || value === undefined ? "–" : String(Number(value.toPrecision(7))));
const duration = (seconds) => (seconds < 1 ? `${format(Math.round(seconds * 1e4) / 10)} ms` : `${seconds.toFixed(1)} s`);

function ago(time) {
  const seconds = Math.max(0, (Date.now() - new Date(time)) / 1000);
  if (seconds < 90) return `${Math.round(seconds)} s ago`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min ago`;
  return seconds < 129600 ? `${Math.round(seconds / 3600)} h ago` : new Date(time).toLocaleDateString();
}

// -- key and start

function showProblems(problems) {
  const shown = [...$("#problems").children].map((node) => node.textContent);
  if (shown.join("\n") === problems.join("\n")) return; // a screen reader would say it again
  $("#problems").replaceChildren(...problems.map((problem) => element("p", { class: "problem" }, problem)));
}

function askForKey(problem) {
  clearTimeout(state.timer);
  state.turn += 1;
  sessionStorage.removeItem(KEY);
  Object.assign(state, { training: null, sampling: null, run: null, steps: [], reports: [], samples: [] });
  $("#main").hidden = $("#forget").hidden = true;
  $("#who").textContent = $("#updated").textContent = "";
  $("#login").hidden = false;
  showProblems(problem ? [problem] : []);
  $("#key").focus();
}

$("#login").onsubmit = (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, $("#key").value.trim());
  $("#key").value = "";
  $("#login").hidden = true;
  poll();
};
$("#forget").onclick = () => askForKey("");
$("#reward select").onchange = () => { state.chosenReward = true; renderRun(); };
for (const id of ["#loss", "#other"]) $(`${id} select`).onchange = renderRun;
document.addEventListener("visibilitychange", () => {
  clearTimeout(state.timer);
  if (!document.hidden && sessionStorage.getItem(KEY)) poll(); // a hidden page asks for nothing
});
if (sessionStorage.getItem(KEY)) poll();
else askForKey("");
