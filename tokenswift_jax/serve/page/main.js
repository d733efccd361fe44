// The page: the list of runs, the run that is open, and what a person does with it.

import { ApiError, get, key, post, send } from "/page/api.js";
import { connect, newSeed, settings } from "/page/dialogs.js";
import { Inspector } from "/page/inspector.js";
import { View } from "/page/view.js";

const $ = (id) => document.getElementById(id);
const number = (value) => value.toLocaleString("en");
const LIST_EVERY = 4000, RUN_EVERY = 1500; // milliseconds
const ENDS = ["finished", "cancelled", "failed"];
const STATES = { queued: "waits", prefill: "reads the prompt", running: "writing", active: "unfinished", paused: "paused",
  finished: "finished", cancelled: "cancelled", failed: "failed" };
const REASONS = { length: "the limit is reached", eos: "the model ended it", stop: "a stop ended it",
  repetition: "it repeated itself", cancelled: "", interrupted: "the server went down", error: "" };
let open = null; // the run on the screen, as the server describes it
let said = "", refused = false, newest = null;

const view = new View($("text"), {
  outline: $("outline"), noOutline: $("no-outline"), count: $("search-count"), words: $("words"),
  plots: { speed: [$("speed"), $("speed-value")], depth: [$("depth"), $("depth-value")], repeat: [$("repeat"), $("repeat-value")] },
}, changed);
const inspector = new Inspector({ form: $("token-form"), number: $("token-number"), back: $("token-back"), on: $("token-on"),
  output: $("token"), button: $("token-branch"), hint: $("token-hint") }, view.text, view.tokens, view.marks, askBranch);

// Errors and the key

function trouble(error) {
  if (error?.name === "AbortError") return;
  if (error instanceof ApiError && error.status === 401 && !refused) {
    refused = true; // ask once; the button asks again
    askKey(key.get() ? "The server refuses this key." : "");
  }
  $("trouble").hidden = !error;
  $("trouble").textContent = error ? error.message : "";
}

const showKey = connect($("key-dialog"), async (fields) => {
  key.set(fields.key.value.trim());
  await get("/v1/models");
  refused = false;
  trouble(null);
  begin();
});

function askKey(problem) {
  if ($("key-dialog").open) return;
  showKey({ key: key.get() });
  const error = $("key-dialog").querySelector(".error");
  error.hidden = !problem;
  error.textContent = problem;
}

$("key-button").addEventListener("click", () => askKey(""));

// The list

async function list() {
  try {
    const { data } = await get("/v1/runs");
    $("no-runs").hidden = data.length > 0;
    const focused = document.activeElement?.dataset?.run;
    const items = data.map((run) => {
      const known = [...$("runs").children].find((item) => item.firstChild.dataset.run === run.id);
      return described(known ?? item(run.id), run);
    });
    if (items.length !== $("runs").children.length || items.some((each, at) => each !== $("runs").children[at])) {
      $("runs").replaceChildren(...items);
      if (focused) items.find((each) => each.firstChild.dataset.run === focused)?.firstChild.focus();
    }
    trouble(null);
    return data;
  } catch (error) {
    trouble(error);
    return null;
  }
}

function item(id) {
  const element = document.createElement("li"), button = document.createElement("button");
  const name = document.createElement("span"), rest = document.createElement("span");
  button.type = "button";
  button.dataset.run = id;
  name.className = "name";
  rest.className = "dim";
  button.append(name, rest);
  button.addEventListener("click", () => { location.hash = id; });
  element.append(button);
  return element;
}

function described(element, run) {
  const [name, rest] = element.firstChild.children;
  const line = `${STATES[run.state] ?? run.state}, ${number(run.tokens)} of ${number(run.max_tokens)} tokens`;
  if (name.textContent !== title(run)) name.textContent = title(run);
  if (rest.textContent !== line) rest.textContent = line;
  element.firstChild.setAttribute("aria-current", String(run.id === open?.id));
  return element;
}

function title(run) {
  return run.name || `${run.parent ? "Branch" : "Run"} of ${new Date(1000 * run.created).toLocaleString()}`;
}

// The open run

async function show(id) {
  if (!id) {
    view.close();
    open = null;
    $("run").hidden = $("side").hidden = true;
    $("empty").hidden = false;
    return;
  }
  try {
    open = await get(`/v1/runs/${id}`);
  } catch (error) {
    trouble(error);
    if (error.status === 404) {
      location.hash = "";
      await show("");
    }
    return;
  }
  $("run").hidden = $("side").hidden = false;
  $("empty").hidden = true;
  $("loop").hidden = true;
  said = open.state;
  inspector.clear(id);
  $("command").textContent = $("prompt").textContent = "";
  status();
  list();
  setFollow(true);
  view.open(id);
  if ($("settings-box").open) describe();
}

async function refresh() {
  if (!open) return;
  const id = open.id;
  try {
    const run = await get(`/v1/runs/${id}`);
    if (open?.id !== id) return;
    open = run;
    status();
  } catch (error) {
    trouble(error);
  }
}

function changed(event, error) {
  if (error) return trouble(error);
  if (!open || !event) return;
  if (event !== newest && (event.finish_reason || event.state === "paused")) refresh();
  newest = event;
  open.tokens = Math.max(view.tokens.count, open.tokens);
  if (open.state === "queued" || open.state === "prefill") open.state = event.state;
  status();
}

function status() {
  const run = open, ended = ENDS.includes(run.state), parts = [STATES[run.state] ?? run.state];
  const reason = REASONS[run.finish_reason] ?? run.finish_reason;
  if (ended && reason) parts[0] += ` (${reason})`;
  if (run.error) parts.push(run.error);
  if (run.position !== null && run.state === "queued") parts.push(`${run.position} before it`);
  if (run.wait_seconds) parts.push(`about ${time(run.wait_seconds)} to wait`);
  parts.push(`${number(run.tokens)} of ${number(run.max_tokens)} tokens`);
  if (run.tokens_per_second) parts.push(`${Math.round(run.tokens_per_second)} tokens/s`);
  if (run.tokens_per_second && run.state === "running") {
    parts.push(`${time((run.max_tokens - run.tokens) / run.tokens_per_second)} left`);
  }
  setText($("run-name"), title(run));
  setText($("run-state"), parts.join(" · "));
  document.title = `${title(run)} – tokenswift`;
  $("run-progress").max = run.max_tokens;
  $("run-progress").value = run.tokens;
  enable("pause", !ended && run.state !== "paused", "resume");
  enable("resume", run.state === "paused", "pause");
  $("pause").hidden = run.state === "paused";
  $("resume").hidden = run.state !== "paused";
  enable("cancel", !ended);
  enable("more", (ended || run.state === "paused") && !["eos", "stop", "repetition", "error"].includes(run.finish_reason));
  enable("branch", run.tokens > 0);
  const loop = view.loops.at(-1) ?? run.loops.at(-1);
  $("loop").hidden = !loop;
  if (loop) {
    const paused = run.state === "paused" && loop.end === run.tokens ? " The run has paused there." : "";
    setText($("loop-text"), `The text repeats itself: ${loop.period} ${loop.period === 1 ? "token" : "tokens"}, again and `
      + `again from token ${number(loop.start + 1)} on.${paused}`);
  }
  if (said !== run.state) {
    said = run.state;
    $("announcer").textContent = `The run: ${parts[0]}.`;
  }
}

// A button that loses its use hands the focus on, so that the keyboard does not start again at the top.
function enable(id, on, next) {
  const focused = document.activeElement === $(id);
  $(id).disabled = !on;
  if (focused && !on) setTimeout(() => (next && !$(next).disabled ? $(next) : $("text")).focus(), 0);
}

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

const time = (seconds) => (seconds < 90 ? `${Math.ceil(seconds)} s` : seconds < 5400 ? `${Math.round(seconds / 60)} min`
  : `${(seconds / 3600).toFixed(1)} h`);

async function act(verb) {
  const id = open.id;
  try {
    const run = await post(`/v1/runs/${id}/${verb}`);
    trouble(null);
    if (open?.id !== id) return;
    open = run;
    status();
    list();
  } catch (error) {
    trouble(error);
    refresh();
  }
}

$("pause").addEventListener("click", () => act("pause"));
$("resume").addEventListener("click", () => act("resume"));
$("cancel").addEventListener("click", () => act("cancel"));

const showMore = connect($("more-dialog"), async (fields) => {
  open = await post(`/v1/runs/${open.id}/continue`, settings(fields));
  status();
  view.join();
});
$("more").addEventListener("click", () => showMore({ max_tokens: 2 * open.max_tokens }));

const showDelete = connect($("delete-dialog"), async () => {
  await send(`/v1/runs/${open.id}`, { method: "DELETE" });
  location.hash = "";
  list();
});
$("delete").addEventListener("click", () => showDelete());

for (const button of document.querySelectorAll("[data-download]")) {
  button.addEventListener("click", async () => {
    const kind = button.dataset.download;
    button.disabled = true;
    try {
      const answer = await send(`/v1/runs/${open.id}/text.${kind}`), link = document.createElement("a");
      link.href = URL.createObjectURL(await answer.blob());
      link.download = `${open.id}.${kind.split("?")[0]}`;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
      button.closest("details").open = false;
    } catch (error) {
      trouble(error);
    }
    button.disabled = false;
  });
}

// Branches

let given = null; // the token that a branch begins with

const showBranch = connect($("branch-dialog"), async (fields) => {
  const body = settings(fields);
  if (given) body.append = [given.token_id];
  const run = await post(`/v1/runs/${open.id}/branch`, body);
  location.hash = run.id;
});

function askBranch(at, token = null) {
  given = token;
  $("branch-token").hidden = !token;
  $("branch-token").textContent = token ? `Then the token ${JSON.stringify(token.text)}.` : "";
  showBranch({ at, seed: newSeed(), max_tokens: open.max_tokens, temperature: "", repetition_penalty: "", name: "" });
}

$("branch").addEventListener("click", () => askBranch(inspector.index ?? open.tokens - (ENDS.includes(open.state) ? 1 : 0)));
$("loop-show").addEventListener("click", () => view.showLoop(view.loops.at(-1) ?? open.loops.at(-1)));
$("loop-branch").addEventListener("click", () => askBranch((view.loops.at(-1) ?? open.loops.at(-1)).start));

// New runs

const showCreate = connect($("create"), async (fields) => {
  const body = { ...settings(fields), on_repetition: fields.on_repetition.value };
  const stops = fields.stop.value.split("\n").filter(Boolean);
  if (stops.length) body.stop = stops;
  if (fields.ignore_eos.checked) body.ignore_eos = true;
  if (fields.kind.value === "chat") {
    const system = fields.system.value.trim();
    body.messages = [...(system ? [{ role: "system", content: system }] : []), { role: "user", content: fields.prompt.value }];
  } else body.prompt = fields.prompt.value;
  const run = await post("/v1/runs", body);
  location.hash = run.id;
});
$("new-button").addEventListener("click", () => showCreate());
for (const radio of $("create-form").elements.kind) {
  radio.addEventListener("change", () => {
    const chat = $("create-form").elements.kind.value === "chat";
    $("system-label").hidden = !chat;
    $("prompt-label").textContent = chat ? "Message" : "Prompt";
  });
}

// The text

function setFollow(on) {
  view.follow = $("follow").checked = on;
  if (on) $("text").scrollTop = $("text").scrollHeight;
}

$("follow").addEventListener("change", () => setFollow($("follow").checked));
view.text.onReveal = () => setFollow(false); // a person looks at a place
let top = 0;
$("text").addEventListener("scroll", () => {
  const element = $("text");
  if (view.follow && element.scrollTop < top - 4 && element.scrollHeight - element.scrollTop - element.clientHeight > 80) {
    setFollow(false); // a person scrolls up to read
  }
  top = element.scrollTop;
});
$("colours").addEventListener("change", () => {
  $("legend").hidden = !$("colours").checked;
  view.colours.show($("colours").checked);
});
$("search").addEventListener("input", () => {
  view.search.find($("search").value);
});
$("tools").addEventListener("submit", (event) => {
  event.preventDefault();
  seek(1);
});
$("search-back").addEventListener("click", () => seek(-1));

function seek(by) {
  if (view.search.asked !== $("search").value || !view.search.found.length) view.search.find($("search").value);
  view.search.step(by);
}

$("text").addEventListener("click", (event) => {
  if (!getSelection().isCollapsed) return;
  const place = document.caretPositionFromPoint?.(event.clientX, event.clientY);
  const range = place ? null : document.caretRangeFromPoint?.(event.clientX, event.clientY);
  const node = place?.offsetNode ?? range?.startContainer, block = node && view.text.ofNode.get(node);
  if (!block) return;
  const unit = block.start + Math.min(place?.offset ?? range.startOffset, Math.max(block.length - 1, 0));
  setFollow(false);
  inspector.show(Math.min(view.tokens.at(view.text.character(unit)), view.tokens.count - 1));
});

// Settings

async function describe() {
  const rows = [];
  for (const [name, value] of Object.entries(open.settings)) {
    if (value === null || (Array.isArray(value) && !value.length)) continue;
    const term = document.createElement("dt"), data = document.createElement("dd");
    term.textContent = name;
    data.textContent = Array.isArray(value) ? value.map((each) => JSON.stringify(each)).join(", ") : String(value);
    rows.push(term, data);
  }
  $("settings").replaceChildren(...rows);
  try {
    const found = await get(`/v1/runs/${open.id}/command`);
    $("command").textContent = found.command ?? `No command: ${found.note}.`;
    $("prompt").textContent = found.prompt ?? "(token ids)";
    $("copy").disabled = !found.command;
  } catch (error) {
    trouble(error);
  }
}

$("settings-box").addEventListener("toggle", () => {
  if ($("settings-box").open && open) describe();
});
$("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText($("command").textContent);
    $("announcer").textContent = "The command is copied.";
    $("copy").textContent = "Copied";
    setTimeout(() => { $("copy").textContent = "Copy the command"; }, 2000);
  } catch {
    getSelection().selectAllChildren($("command")); // without a secure origin there is no clipboard
  }
});
$("plots-box").addEventListener("toggle", () => redraw());
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw());
addEventListener("resize", () => redraw());

function redraw() {
  view.plots.dirty = true;
  view.plots.draw();
}

// Life

let lists = 0, runs = 0;

function begin() {
  clearInterval(lists);
  clearInterval(runs);
  const narrow = matchMedia("(max-width: 40rem)").matches;
  get("/v1/models").then(({ data }) => {
    $("model").textContent = data[0].id;
    list().then((data) => {
      const id = location.hash.slice(1);
      if (!id && data?.length && !narrow) history.replaceState(null, "", `#${data[0].id}`);
      show(location.hash.slice(1));
    });
  }).catch(trouble);
  lists = setInterval(list, LIST_EVERY);
  runs = setInterval(() => open && !ENDS.includes(open.state) && refresh(), RUN_EVERY);
}

addEventListener("hashchange", () => show(location.hash.slice(1)));
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the part after # names the run
  $("text").focus();
});
// Browsers allow few connections to one server: a hidden tab gives its own back.
document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    clearInterval(lists);
    clearInterval(runs);
    view.close();
  } else {
    lists = setInterval(list, LIST_EVERY);
    runs = setInterval(() => open && !ENDS.includes(open.state) && refresh(), RUN_EVERY);
    list();
    if (open) {
      refresh();
      view.join();
    }
  }
});
begin();
