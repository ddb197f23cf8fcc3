"use strict";
// Data becomes text, never markup.
const $ = (id) => document.getElementById(id);
const make = (name, attributes = {}, ...children) => {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") node.className = value;
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
};
const svg = (name, attributes, text) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
};
const fill = (id, ...children) => $(id).replaceChildren(...children.filter((child) => child !== null));
const quiet = (text) => make("p", { class: "quiet" }, text);

const count = (n) => (n >= 1e6 ? (n / 1e6).toFixed(2) + " M" : Math.round(n).toLocaleString("en"));
const share = (part, whole) => (whole ? ((100 * part) / whole).toFixed(part && part / whole < 0.0995 ? 1 : 0) + " %" : "–");
const dollars = (x) => (x === 0 ? "$0" : x < 1e-6 ? "<$0.000001" : x < 0.01 ? "$" + x.toPrecision(2) : "$" + x.toFixed(x < 10 ? 3 : 2));
// A cost of which nothing is known, because the profile has no price, is not $0.
const money = (one) => (!one.unpriced ? dollars(one.cost) : one.cost ? "at least " + dollars(one.cost) : "unknown");
const millis = (x) => (x === null ? "–" : x >= 1e4 ? (x / 1e3).toFixed(0) + " s" : x >= 1e3 ? (x / 1e3).toFixed(2) + " s" : x >= 10 ? x.toFixed(0) + " ms" : x.toFixed(2) + " ms");
const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
const day = (seconds) => new Date(seconds * 1000).toLocaleDateString([], { day: "numeric", month: "short" });

const table = (columns, rows) =>
  make("div", { class: "scroll" }, make("table", {},
    make("thead", {}, make("tr", {}, ...columns.map(([title, kind]) => make("th", { class: kind || "" }, title)))),
    make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((cell, i) => make("td", { class: columns[i][1] || "" }, cell)))))));

const bar = (part, whole) => {
  const inner = make("i");
  inner.style.width = (whole ? (100 * part) / whole : 0).toFixed(1) + "%";
  return make("div", { class: "share" }, inner);
};

const tile = (name, value, note) => make("div", { class: "tile" }, make("span", { class: "name" }, name), make("b", {}, value), make("span", {}, note || " "));

// What own GPUs cost while they are held, busy or idle: no part of any request's cost.
const hours = (x) => x.toFixed(x < 10 ? 1 : 0) + " h";
const reserved = (held) => held && tile("Own GPUs", held.cost === null ? "unknown" : (held.unpriced ? "at least " : "") + dollars(held.cost),
  `${hours(held.hours)} held, idle included: ${held.servers.map((s) => `${s.name} ${hours(s.hours)}`).join(", ")}`);

function tiles(all) {
  const t = all.total;
  const minutes = Math.max((all.until - all.since) / 60, 1);
  const rate = all.live ? all.rate_now : t.requests / minutes;
  const saved = t.strongest_cost - t.compared_cost;
  const against = t.strongest_cost > 0
    ? `${share(t.compared_cost, t.strongest_cost)} of always calling the strongest tier` + (saved >= 0 ? `, ${dollars(saved)} saved` : `, ${dollars(-saved)} more`)
    : "no other tier to compare with";
  fill("tiles",
    tile("Requests", count(t.requests), `${rate.toFixed(rate < 10 && !Number.isInteger(rate) ? 1 : 0)} per minute`),
    tile("Errors", share(t.errors, t.requests), `${count(t.errors)} failed`),
    tile("Latency", millis(all.latency.p50), `p95 ${millis(all.latency.p95)}, p99 ${millis(all.latency.p99)}`),
    tile("Overhead", millis(all.overhead.p50), `p95 ${millis(all.overhead.p95)}, p99 ${millis(all.overhead.p99)}`),
    tile("Cost", money(t), against),
    reserved(all.reservation),
    tile("Escalations", share(t.escalations, t.requests), "answered by a higher tier"),
    tile("Fallbacks", share(t.fallbacks, t.requests), "answered by another candidate"),
    tile("Tokens", count(t.prompt_tokens + t.completion_tokens), `${count(t.prompt_tokens)} in, ${count(t.completion_tokens)} out`));
}

// What a key sees: its own use only.
function own(account) {
  const left = account.budgets.map((b) => `${dollars(b.spent)} of ${dollars(b.dollars)} ${b.period === "total" ? "in all" : "this " + b.period}`);
  fill("tiles",
    tile("Key", account.name, account.id),
    tile("Requests", count(account.requests), "with this key"),
    tile("Tokens", count(account.tokens), "in and out"),
    tile("Cost", dollars(account.spent), left.join(", ") || "no budget"));
}

// Who used what, the most expensive first.
function usage(rows) {
  $("used").hidden = !rows || !rows.length;
  if (!$("used").hidden) fill("usage", table(
    [["key", "name"], ["user", "name"], ["team", "name"], ["requests", "number"], ["tokens", "number"], ["cost", "number"]],
    rows.map((r) => [r.name, r.user || "–", r.team || "–", count(r.requests), count(r.tokens), dollars(r.cost)])));
}

// ------------------------------------------------------------------------------------------------------------------ chart
const PERIODS = { hour: 3600, day: 86400, "90 days": 7776000 };
let chosen = null;

function chart(all) {
  if (chosen === null) chosen = (!all.live && Object.keys(PERIODS).find((name) => all.until - all.since <= PERIODS[name])) || (all.live ? "hour" : "90 days");
  fill("spans", ...Object.keys(PERIODS).map((name) => make("button", {
    type: "button", "aria-pressed": String(name === chosen), onclick: () => { chosen = name; chart(all); },
  }, name)));
  const length = PERIODS[chosen], slots = all.course[chosen].length, width = length / slots, end = all.until, start = end - length;
  const good = all.course[chosen].map(([answered]) => answered), bad = all.course[chosen].map(([, failed]) => failed);
  const most = Math.max(1, ...good.map((n, i) => n + bad[i]));
  const W = 1000, H = 140, picture = svg("svg", { viewBox: `0 0 ${W} 170`, preserveAspectRatio: "none", role: "img" });
  picture.append(svg("title", {}, `${count(good.concat(bad).reduce((a, b) => a + b, 0))} requests in the last ${chosen}`));
  picture.append(svg("line", { x1: 0, x2: W, y1: H + 8, y2: H + 8 }), svg("line", { x1: 0, x2: W, y1: 8, y2: 8 }));
  for (let i = 0; i < slots; i++) {
    const x = (i * W) / slots + 1, w = W / slots - 2, a = (good[i] / most) * H, b = (bad[i] / most) * H;
    if (a) picture.append(svg("rect", { class: "ok", x, width: w, y: 8 + H - a, height: a, rx: 1.5 }));
    if (b) picture.append(svg("rect", { class: "bad", x, width: w, y: 8 + H - a - b, height: b, rx: 1.5 }));
  }
  const label = length > 86400 ? day : clock;
  const scale = make("div", { class: "head quiet" }, make("small", {}, label(start)), make("small", {}, `at most ${count(most)} in ${width >= 3600 ? (width / 3600).toFixed(0) + " h" : width >= 60 ? (width / 60).toFixed(0) + " min" : width.toFixed(0) + " s"}`), make("small", {}, label(end)));
  fill("chart", picture, scale);
}

// ----------------------------------------------------------------------------------------------------------------- tables
function models(all) {
  if (!all.models.length) return fill("models", quiet("No requests yet."));
  fill("models", table([["model", "name"], ["share", "number"], ["requests", "number"], ["errors", "number"], ["p50", "number"], ["cost", "number"]],
    all.models.map((m) => [make("div", {}, m.name || "(no answer)", bar(m.requests, all.total.requests)), share(m.requests, all.total.requests), count(m.requests), count(m.errors), millis(m.p50), money(m)])));
}

const tierName = (t) => `${t.tier + 1}` + (t.models.length ? ": " + t.models.slice(0, 3).join(", ") : "") + (t.models.length > 3 ? ", …" : "");

function tiers(all) {
  fill("tiers", all.tiers.length ? table([["tier", "name"], ["share", "number"], ["requests", "number"], ["cost", "number"]],
    all.tiers.map((t) => [make("div", {}, tierName(t), bar(t.requests, all.total.requests)), share(t.requests, all.total.requests), count(t.requests), money(t)])) : quiet("No requests yet."));
  const kinds = Object.entries(all.errors).sort((a, b) => b[1] - a[1]);
  fill("errors", kinds.length ? table([["error", "name"], ["requests", "number"]], kinds.map(([kind, n]) => [kind, count(n)])) : quiet("None."));
}

// Which decisions to show: what was chosen stays chosen while new ones arrive.
const FAILED = "failed, whatever the error";
const FIELDS = {
  task: (r) => r.task_type,
  model: (r) => r.candidate || "(no answer)",
  key: (r) => r.key || "(no key)",
  error: (r) => (r.success ? "none" : r.error),
};
const AGES = { minute: 60, "5 minutes": 300, hour: 3600, day: 86400, week: 604800 };
const wanted = { task: "", model: "", key: "", error: "", time: "" };

function filters(all) {
  const choose = (name, options, label) => {
    let select = $("by-" + name);
    if (!select) {
      select = make("select", { id: "by-" + name, "aria-label": name, onchange: () => { wanted[name] = select.value; recent(all_last); } });
      $("filters").append(select);
    }
    if (wanted[name] && !options.includes(wanted[name])) options.push(wanted[name]);
    const texts = JSON.stringify(options);
    if (select.dataset.options === texts) return;
    select.dataset.options = texts;
    select.replaceChildren(make("option", { value: "" }, `${name}: all`), ...options.map((o) => make("option", { value: o }, label(o))));
    select.value = wanted[name];
  };
  for (const [name, of] of Object.entries(FIELDS)) {
    const found = [...new Set(all.recent.map(of))].sort();
    if (name === "error" && all.recent.some((r) => !r.success)) found.unshift(FAILED);
    choose(name, found, (o) => `${name}: ${o}`);
  }
  choose("time", Object.keys(AGES), (o) => `the last ${o}`);
  $("by-key").hidden = !wanted.key && !all.recent.some((r) => r.key);
}

const fits = (r, until) =>
  Object.entries(FIELDS).every(([name, of]) => !wanted[name] || of(r) === wanted[name] || (wanted[name] === FAILED && !r.success)) &&
  (!wanted.time || until - Date.parse(r.timestamp) / 1000 <= AGES[wanted.time]);

let all_last = null;
function recent(all) {
  all_last = all;
  if (!all.recent.length) return fill("recent", quiet("No requests yet."));
  filters(all);
  const chosenOnes = all.recent.filter((r) => fits(r, all.until));
  const most = Object.values(wanted).some(Boolean) ? 100 : 25;
  $("shown").textContent = `${Math.min(most, chosenOnes.length)} of ${all.recent.length}`;
  if (!chosenOnes.length) return fill("recent", quiet("None of the last decisions."));
  const open = new Set([...document.querySelectorAll("#recent details[open]")].map((node) => node.dataset.id));
  const why = (r) => {
    const text = r.success ? r.reason || "" : `${r.error}${r.reason ? "; " + r.reason : ""}`;
    if (!r.decision) return text;
    const d = make("details", { "data-id": r.request_id }, make("summary", {}, text || "the decision"), make("pre", {}, JSON.stringify({ ...r.decision, router: r.router, strategy: r.strategy, request_id: r.request_id }, null, 1)));
    if (open.has(r.request_id)) d.setAttribute("open", "");
    return d;
  };
  fill("recent", table([["time", ""], ["task", "name"], ["model", "name"], ["tier", "number"], ["latency", "number"], ["cost", "number"], ["why", "why"]],
    chosenOnes.slice(-most).reverse().map((r) => [
      (all.live ? new Date(r.timestamp).toLocaleTimeString() : new Date(r.timestamp).toLocaleString()), r.key ? `${r.task_type} (${r.key})` : r.task_type, make("span", { class: r.success ? "" : "ill" }, r.candidate || "–"),
      (r.tier + 1) + (r.fallback_depth ? ` (+${r.fallback_depth})` : ""), millis(r.latency_ms), money({ cost: r.cost, unpriced: r.cost_known === false }), why(r)])));
}

function refusals(s) {
  return s.refused_keys ? make("div", { class: "ill" }, `refused the service's key: ${count(s.refused_keys)} calls, the last at ${clock(s.refused_key_at)}`) : "";
}

function fleet(found) {
  const rows = found.servers.map((s) => [s.name, make("span", { class: s.healthy ? "good" : "ill" }, s.healthy ? "up" : "down"), s.breaker || "–", make("div", {}, s.detail || "", refusals(s))]);
  fill("fleet", rows.length ? table([["model or server", "name"], ["state", ""], ["breaker", ""], ["", "why"]], rows) : quiet("No servers in this profile."));
}

function certificates(found) {
  if (!found.length) return fill("certificates", quiet("No certificate is active."));
  fill("certificates", table([["certificate", "name"], ["audited", "number"], ["wrong", "number"], ["state", "why"]],
    found.map((c) => [`${c.router}: ${c.certificate}`, count(c.audits), c.audits ? share(c.error * c.audits, c.audits) : "–",
      make("div", {}, make("span", { class: c.alarm ? "ill" : "good" }, c.alarm ? `suspended: ${c.alarm}` : "active"), make("div", {}, c.statement))])));
}

// -------------------------------------------------------------------------------------------------------------- workflows
// The drawing comes from the service, as `workflow graph` draws it; here each box gets its step's state.
const drawings = new Map();
const chosenRuns = new Map();
const ENDS = ["done", "failed", "withheld", "waiting", "skipped", "not_run"];
const cut = (text, most) => (text.length <= most ? text : text.slice(0, most - 1) + "…");

function standing(step, rows) {
  const bad = (step.states.failed || 0) + (step.states.withheld || 0);
  const kind = bad ? "failed" : step.running ? "running" : ENDS.some((s) => step.states[s]) ? "done" : "";
  const parts = ENDS.filter((s) => step.states[s]).map((s) => `${count(step.states[s])} ${s.replace("_", " ")}`);
  if (step.running) parts.unshift(rows > 1 && !step.of_run ? `${count(step.running)} running` : "running");
  const items = Object.entries(step.items).map(([s, n]) => `${count(n)} ${s.replace("_", " ")}`);
  return { kind, told: parts.join(", ") || "not begun", items: items.length ? `items: ${items.join(", ")}` : "" };
}

function graph(run, drawing) {
  const states = new Map(run.steps.map((step) => [step.name, step]));
  const [w, h] = drawing.box;
  const picture = svg("svg", { class: "flow", viewBox: `0 0 ${drawing.wide} ${drawing.high}`, width: drawing.wide, height: drawing.high, role: "img" });
  picture.append(svg("title", {}, `the steps of ${run.workflow}`));
  for (const path of drawing.arrows) {
    picture.append(svg("path", { class: "arrow", d: path }));
    const [x, y] = path.split(" ").pop().split(",").map(Number);
    picture.append(svg("path", { class: "head", d: `M${x - 7},${y - 4} L${x},${y} L${x - 7},${y + 4} z` }));
  }
  for (const box of drawing.boxes) {
    const step = states.get(box.name), now = step && standing(step, run.rows.total);
    const kinds = ["box", box.input && "input", box.private && "private", box.of_run && "of_run", now && now.kind].filter(Boolean);
    const group = svg("g", { "data-step": box.name });
    group.append(svg("title", {}, `${box.name}: ${box.told}${box.private ? " (private)" : ""}${now ? "; " + now.told : ""}`));
    group.append(svg("rect", { class: kinds.join(" "), x: box.x, y: box.y, width: w, height: h, rx: 6 }));
    group.append(svg("text", { class: "name", x: box.x + 10, y: box.y + 22 }, cut(box.name, 22)));
    group.append(svg("text", { class: "told", x: box.x + 10, y: box.y + 39 }, cut(box.told, 32)));
    if (step) {
      const whole = box.of_run ? 1 : run.rows.total || 1, shares = [...ENDS.map((s) => [s, step.states[s]]), ["running", step.running]];
      let x = box.x + 10;
      for (const [state, n] of shares.filter(([, n]) => n)) {
        const width = Math.max(2, Math.min(((w - 20) * n) / whole, box.x + w - 10 - x));
        group.append(svg("rect", { class: `bar ${state === "withheld" ? "failed" : state}`, x, y: box.y + h - 8, width, height: 4 }));
        x += width;
      }
      group.append(svg("text", { x: box.x + 10, y: box.y + h + 14 }, cut(now.told, 34)));
    }
    picture.append(group);
  }
  return picture;
}

async function drawingOf(run) {
  drawings.set(run.id, null); // asked for
  const key = sessionStorage.getItem("key");
  try {
    const answer = await fetch(`/v1/workflows/runs/${run.id}`, { headers: key ? { authorization: "Bearer " + key } : {}, cache: "no-store" });
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    drawings.set(run.id, (await answer.json()).graph);
    runs(lastRuns);
  } catch (error) {
    drawings.delete(run.id); // the next refresh asks again
  }
}

const RUN_KINDS = { running: "ok", done: "ok", failed: "bad", lost: "bad", cancelled: "warn", partial: "warn", waiting: "warn" };
let lastRuns = [];
function runs(found) {
  lastRuns = found || [];
  $("flows").hidden = !lastRuns.length;
  if ($("flows").hidden) return;
  const places = new Map([...document.querySelectorAll("#runs .run")].filter((node) => node.querySelector(".scroll svg")).map((node) => [node.dataset.id, node.querySelector(".scroll").scrollLeft]));
  const shown = lastRuns.map((run, at) => {
    const ended = run.ended || run.updated, total = run.rows.total, over = Object.entries(run.rows).reduce((sum, [name, n]) => sum + (name === "total" ? 0 : n), 0);
    const node = make("details", { class: "run", "data-id": run.id },
      make("summary", {}, make("span", { class: `pill ${RUN_KINDS[run.state] || "warn"}` }, run.state), make("b", {}, run.workflow),
        make("span", { class: "quiet" }, run.source === "service" ? "a request" : `${run.output} on ${run.host}`),
        make("span", {}, run.source === "service" ? "" : `${count(over)} of ${count(total)} rows`), make("span", {}, `${count(run.calls)} calls, ${dollars(run.cost)}`),
        make("span", { class: "quiet" }, `${new Date(run.began * 1000).toLocaleTimeString()}, ${Math.max(0, ended - run.began).toFixed(0)} s`)));
    const open = chosenRuns.has(run.id) ? chosenRuns.get(run.id) : at === 0;
    if (open) {
      node.setAttribute("open", "");
      const drawing = drawings.get(run.id);
      if (drawing) node.append(make("div", { class: "scroll" }, graph(run, drawing)));
      else if (drawing === undefined) drawingOf(run);
      node.append(table([["step", "name"], ["state", "why"], ["calls", "number"], ["cost", "number"]], run.steps.map((step) => {
        const now = standing(step, total), failures = Object.entries(step.failures).map(([kind, n]) => `${kind} (${count(n)})`).join(", ");
        const told = make("div", {}, make("span", { class: { failed: "ill", done: "good" }[now.kind] || "" }, now.told));
        for (const more of [failures && "failed: " + failures, now.items, step.kept && `${count(step.kept)} kept or shared`, step.answer && `an answer of ${count(step.answer.length)} characters`]) if (more) told.append(make("div", {}, more));
        return [step.name + (step.private ? " (private)" : ""), told, count(step.calls), dollars(step.cost)];
      })));
    }
    node.querySelector("summary").addEventListener("click", (event) => { event.preventDefault(); chosenRuns.set(run.id, !open); runs(lastRuns); });
    return node;
  });
  fill("runs", ...shown);
  for (const node of document.querySelectorAll("#runs .run .scroll:has(svg)")) {
    const identity = node.parentNode.dataset.id, at = node.querySelector(".bar.running");
    node.scrollLeft = places.get(identity) ?? (at ? at.getAttribute("x") - 40 : 0); // where it was, else where something happens
  }
}

// ----------------------------------------------------------------------------------------------------------------- switch
const admin = async (method, path, body) => {
  const token = $("token").value || sessionStorage.getItem("token") || "";
  if ($("token").value) sessionStorage.setItem("token", token);
  const answer = await fetch(path, { method, headers: { "x-admin-token": token, "content-type": "application/json" }, body: body && JSON.stringify(body) });
  const data = await answer.json();
  if (!answer.ok) throw new Error(data.error.message);
  return data;
};
const attempt = (work) => async (event) => {
  if (event) event.preventDefault();
  try { await work(); } catch (error) { fill("outcome", make("p", { class: "ill" }, error.message)); }
};
const lines = (change) => {
  if (change && typeof change === "object" && "added" in change) {
    return [...change.added.map((n) => `+ ${n}`), ...change.removed.map((n) => `− ${n}`), ...Object.entries(change.changed).map(([n, c]) => `${n}: ${JSON.stringify(c.from)} → ${JSON.stringify(c.to)}`)];
  }
  return [`${JSON.stringify(change.from)} → ${JSON.stringify(change.to)}`];
};
const preview = attempt(async () => {
  const target = $("target").value;
  const found = await admin("PUT", "/admin/strategy?dry_run=true", { strategy: target });
  const changes = Object.entries(found.changes);
  const go = make("button", { id: "confirm", onclick: attempt(async () => {
    const version = await admin("PUT", "/admin/strategy", { strategy: target });
    fill("outcome", make("p", { class: "good" }, `Version ${version.number} is active: ${version.strategy}.`));
    await versions(); await refresh();
  }) }, `Switch to ${found.to}`);
  fill("outcome", make("p", {}, changes.length ? `Switching from ${found.from} to ${found.to} would change:` : `${found.from} and ${found.to} do not differ.`),
    changes.length ? make("div", { class: "changes" }, table([["setting", "name"], ["change", "why"]], changes.map(([name, change]) => [name, make("div", {}, ...lines(change).map((line) => make("div", {}, line)))]))) : null, go);
});
const versions = async () => {
  const found = await admin("GET", "/admin/strategy/versions");
  fill("versions", table([["version", "number"], ["strategy", "name"], ["since", ""], ["by", "why"], ["", ""]],
    found.versions.slice(-8).reverse().map((v) => [String(v.number), v.strategy, new Date(v.at).toLocaleString(), v.who,
      v.number === found.active ? make("span", { class: "good" }, "active") : make("button", { class: "plain", onclick: attempt(async () => {
        await admin("POST", "/admin/strategy/rollback", { version: v.number }); await versions(); await refresh();
      }) }, "roll back")])));
};

// ------------------------------------------------------------------------------------------------------------------- life
let last = 0;
function show(data) {
  last = Date.now();
  $("entry").hidden = true; $("content").hidden = false;
  $("strategy").textContent = data.title;
  const [text, kind] = data.live ? (data.draining ? ["draining", "warn"] : data.ready ? ["ready", "ok"] : ["no model available", "bad"]) : ["from a file", ""];
  $("state").textContent = text; $("state").className = "pill " + kind;
  document.body.classList.toggle("own", Boolean(data.account));
  usage(data.usage);
  runs(data.flows);
  if (data.account) { own(data.account); $("live").hidden = $("switching").hidden = true; return; }
  const all = data.figures;
  all.live = data.live;
  all.reservation = data.reservation || null;
  tiles(all); chart(all); models(all); tiers(all); recent(all);
  $("live").hidden = $("switching").hidden = !data.live;
  if (!data.live) { $("updated").textContent = data.period; return; }
  fleet(data); certificates(data.certificates);
  $("closed").hidden = data.switchable; $("switch").hidden = !data.switchable;
  const names = data.profiles.join("\n");
  if ($("target").dataset.names !== names) {
    $("target").dataset.names = names;
    $("target").replaceChildren(...data.profiles.map((name) => make("option", { value: name }, name)));
    $("target").value = data.strategy;
  }
}
async function refresh() {
  try {
    const key = sessionStorage.getItem("key");
    const answer = await fetch("/dashboard/data", { headers: key ? { authorization: "Bearer " + key } : {}, cache: "no-store" });
    if (answer.status === 401) { $("entry").hidden = false; $("content").hidden = true; $("state").textContent = "locked"; $("state").className = "pill"; return; }
    if (!answer.ok) throw new Error(`the service returned status ${answer.status}`);
    show(await answer.json());
    $("trouble").hidden = true;
  } catch (error) {
    $("trouble").hidden = false;
    $("trouble").textContent = `Not up to date: ${error.message === "Failed to fetch" ? "cannot reach the service" : error.message}.`;
    $("state").textContent = "no connection"; $("state").className = "pill bad";
  }
}
$("entry").addEventListener("submit", (event) => { event.preventDefault(); sessionStorage.setItem("key", $("key").value.trim()); refresh(); });
$("switch").addEventListener("submit", async (event) => { await preview(event); await attempt(versions)(); });
const embedded = $("data").textContent.trim();
if (embedded) show(JSON.parse(embedded));
else {
  refresh();
  setInterval(() => { if (!document.hidden) refresh(); }, 2000);
  setInterval(() => { $("updated").textContent = last ? `${Math.round((Date.now() - last) / 1000)} s ago` : ""; }, 1000);
}
