import { reachable } from "./chat.js";

const EVERY = 5000;
const PATIENCE = 4000;
const COPIED_FOR = 2000;
const byId = (id) => document.getElementById(id);

// ---- What runs

const LOCAL = {
  ready: (model) => ["good", "Ready", `\`${model}\` answers as \`local\` — a toy model for trying the gateway, not for answers.`],
  absent: (model) => ["off", "Not here yet", `Run \`ai-server models pull\` on the server’s machine to fetch \`${model}\`; it is then picked up by itself.`],
  starting: (model) => ["wait", "Starting", `\`${model}\` is being loaded. This takes some seconds.`],
  stopped: () => ["off", "Stopped", "It starts and stops together with the server."],
  unsupported: (model, why) => ["off", "Cannot run here", why ?? "This machine lacks what the model needs."],
  failed: (model, why) => ["bad", "Failed", why ?? "The server’s log has the details."],
  off: () => ["off", "Switched off", "The setting `LOCAL_MODELS` is false. Other providers are not affected."],
};

/** Text in which `words` between backticks become code. */
function write(node, text) {
  node.replaceChildren(...text.split("`").map((part, index) => {
    if (index % 2 === 0) return part;
    const code = document.createElement("code");
    code.textContent = part;
    return code;
  }));
}

/** Touches the page only for news: a live region that is rewritten is read out again. */
function show(id, [tone, word, detail]) {
  const card = byId(id);
  const news = `${tone}|${word}|${detail}`;
  if (card.dataset.shown === news) return;
  card.dataset.shown = news;
  card.dataset.tone = tone;
  card.setAttribute("aria-busy", "false");
  card.querySelector(".word").textContent = word;
  write(card.querySelector(".detail"), detail);
}

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
const sentence = (text) => (/[.!?]$/.test(text) ? text : `${text}.`);

function showHealth(health) {
  if (health.status === "ready") {
    show("server", ["good", "Ready", "It takes calls at this address."]);
  } else {
    const problems = Object.entries(health.problems ?? {})
      .map(([part, why]) => sentence(`${capital(part)}: ${why}`));
    show("server", ["bad", "Not ready", problems.join(" ") || "The server did not say why."]);
  }
  const { state = "off", model = "The model", reason } = health.local ?? {};
  const told = LOCAL[state] ?? ((_, why) => ["off", capital(state), why ?? ""]);
  show("local", told(model, reason));
  reachable(true, state);
}

function showUnreachable(why) {
  show("server", ["bad", "Cannot be reached", `${why} Trying again every 5 seconds.`]);
  show("local", ["off", "Unknown", "Nothing is known of it until the server answers."]);
  reachable(false, "");
}

async function health() {
  let response;
  try {
    response = await fetch("/health/ready", { cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
  } catch (error) {
    const slow = error.name === "TimeoutError";
    throw new Error(slow ? "It does not answer in time." : "Nothing answers at this address.");
  }
  const body = await response.json().catch(() => null);
  if (body?.status === undefined) throw new Error(`Something else answers (status ${response.status}).`);
  return body;
}

let timer = 0;
let asking = false;

async function poll() {
  clearTimeout(timer);
  if (asking || document.hidden) return;
  asking = true;
  try {
    showHealth(await health());
  } catch (error) {
    showUnreachable(error.message);
  } finally {
    asking = false;
    clearTimeout(timer);
    if (!document.hidden) timer = setTimeout(poll, EVERY);
  }
}

document.addEventListener("visibilitychange", poll);
poll();

// ---- Examples

for (const node of document.querySelectorAll(".origin")) node.textContent = location.origin;

const tabs = [...document.querySelectorAll('[role="tab"]')];

function choose(chosen) {
  for (const tab of tabs) {
    const on = tab === chosen;
    tab.setAttribute("aria-selected", String(on));
    tab.tabIndex = on ? 0 : -1;
    byId(tab.getAttribute("aria-controls")).hidden = !on;
  }
}

for (const [index, tab] of tabs.entries()) {
  const goes = { ArrowRight: index + 1, ArrowLeft: index - 1 + tabs.length, Home: 0, End: tabs.length - 1 };
  tab.addEventListener("click", () => choose(tab));
  tab.addEventListener("keydown", (event) => {
    if (!(event.key in goes) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const next = tabs[goes[event.key] % tabs.length];
    choose(next);
    next.focus();
  });
}
choose(tabs[0]);

/** The clipboard is closed to pages on plain http elsewhere than localhost; selecting is not. */
async function copy(node) {
  try {
    await navigator.clipboard.writeText(node.textContent);
    return true;
  } catch {
    getSelection().selectAllChildren(node);
    return document.execCommand("copy");
  }
}

for (const button of document.querySelectorAll(".copy")) {
  let back = 0;
  button.setAttribute("aria-label", `Copy ${button.dataset.what}`);
  button.addEventListener("click", async () => {
    const done = await copy(byId(button.dataset.copy));
    button.textContent = done ? "Copied" : "Selected";
    button.classList.add("done");
    byId("copied").textContent = done
      ? `${button.dataset.what} copied.`
      : `${button.dataset.what} selected; copy it with the keyboard.`;
    clearTimeout(back);
    back = setTimeout(() => {
      button.textContent = "Copy";
      button.classList.remove("done");
      byId("copied").textContent = "";
    }, COPIED_FOR);
  });
}
