const byId = (id) => document.getElementById(id);
const key = byId("key");
const note = byId("key-note");
const model = byId("model");
const prompt = byId("prompt");
const send = byId("send");
const stop = byId("stop");
const answer = byId("answer");
const answerText = byId("answer-text");
const answerError = byId("answer-error");
const answerNote = byId("answer-note");

const UNREACHABLE = "The server cannot be reached.";
const TYPING = 250;
const PATIENCE = 10000;

let up = true;
let engine = null;
let running = null;

// ---- Talking to the server

/** A failure whose message is meant for the person at the page. */
class Told extends Error {}

const secret = () => key.value.trim();
const sendable = () => /^[\x21-\x7e]+$/.test(secret());
const bearer = () => ({ Authorization: `Bearer ${secret()}` });

/** What the server says of a call that it refused, in whichever of its two forms. */
function reason(body) {
  const said = body?.error?.message ?? body?.responseStatus?.message ?? body?.error;
  return typeof said === "string" && said !== "" ? said : null;
}

async function call(path, options) {
  let response;
  try {
    response = await fetch(path, { cache: "no-store", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Told(error.name === "TimeoutError" ? "The server does not answer in time." : UNREACHABLE);
  }
  if (response.ok) return response;
  const said = reason(await response.json().catch(() => null));
  throw new Told(said ?? `The server answered with status ${response.status}.`);
}

/** The data of each server-sent event; bytes may be cut anywhere, inside a character too. */
export async function* events(stream) {
  const decoder = new TextDecoder();
  const reader = stream.getReader();
  let rest = "";
  let data = [];
  try {
    for (let done = false; !done; ) {
      const got = await reader.read();
      done = got.done;
      rest += decoder.decode(got.value, { stream: !done });
      // The second half of a CR LF may still be on its way.
      const held = !done && rest.endsWith("\r") ? "\r" : "";
      const lines = rest.slice(0, rest.length - held.length).split(/\r\n|\r|\n/);
      rest = lines.pop() + held;
      for (const line of lines) {
        if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
        if (line !== "" || data.length === 0) continue;
        yield data.join("\n");
        data = [];
      }
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}

/** The text of a streamed chat, piece by piece. */
export async function* pieces(stream) {
  let finished = false;
  for await (const data of events(stream)) {
    if (data === "[DONE]") return;
    let chunk;
    try {
      chunk = JSON.parse(data);
    } catch {
      throw new Told("The server sent something that cannot be read.");
    }
    if (chunk.error) throw new Told(reason(chunk) ?? "The model failed.");
    const choice = chunk.choices?.[0];
    finished ||= Boolean(choice?.finish_reason);
    if (choice?.delta?.content) yield choice.delta.content;
  }
  if (!finished) throw new Told("The answer broke off before its end.");
}

// ---- The key and the models it may use

let typing = 0;
let listing = null;

function tell(text, tone = "") {
  if (note.textContent !== text) note.textContent = text;
  note.dataset.tone = tone;
  if (tone === "bad") key.setAttribute("aria-invalid", "true");
  else key.removeAttribute("aria-invalid");
}

function offer(names) {
  const before = model.value;
  model.replaceChildren(...names.map((name) => new Option(name, name)));
  if (names.includes(before)) model.value = before;
  else if (names.includes("local")) model.value = "local";
  model.disabled = names.length < 2;
}

async function listModels() {
  listing?.abort();
  if (secret() === "") {
    tell("");
    offer(["local"]);
    return;
  }
  if (!sendable()) {
    tell("A key is made of plain letters, digits and signs, without spaces.", "bad");
    return;
  }
  const mine = new AbortController();
  listing = mine;
  try {
    const signal = AbortSignal.any([mine.signal, AbortSignal.timeout(PATIENCE)]);
    const response = await call("/v1/models", { headers: bearer(), signal });
    const names = (await response.json()).data.map((item) => item.id);
    if (mine.signal.aborted) return;
    tell(`Accepted. ${names.length === 1 ? "1 model" : `${names.length} models`} can be used.`, "good");
    offer(names.length > 0 ? names : ["local"]);
  } catch (error) {
    if (mine.signal.aborted) return;
    tell(error instanceof Told ? error.message : "The list of models cannot be read.", "bad");
  }
}

key.addEventListener("input", () => {
  clearTimeout(typing);
  listing?.abort();
  tell("");
  typing = setTimeout(listModels, TYPING);
  refresh();
});

byId("reveal").addEventListener("click", (event) => {
  const shown = key.type === "password";
  key.type = shown ? "text" : "password";
  event.target.textContent = shown ? "Hide" : "Show";
  event.target.setAttribute("aria-pressed", String(shown));
});

/** Called with every check of the server; a change may mean other models. */
export function reachable(now, state) {
  const news = now && (!up || (engine !== null && engine !== state));
  up = now;
  if (now) engine = state;
  if (news && secret() !== "") listModels();
  refresh();
}

// ---- Sending

function refresh() {
  let why = "";
  if (!up) why = UNREACHABLE;
  else if (secret() === "") why = "Type a key above first.";
  else if (!sendable()) why = "The key above cannot be right.";
  else if (prompt.value.trim() === "") why = "Write a prompt first.";
  const hint = running ? "" : why || "Ctrl or ⌘ with Enter sends, too.";
  send.disabled = Boolean(running) || why !== "";
  stop.disabled = !running;
  if (byId("send-why").textContent !== hint) byId("send-why").textContent = hint;
}

const follows = () => answer.scrollHeight - answer.scrollTop - answer.clientHeight < 24;

function begin() {
  const held = document.activeElement === send;
  running = new AbortController();
  answer.dataset.state = "running";
  answerText.className = "empty";
  answerText.textContent = "Waiting for the first word…";
  answerText.setAttribute("aria-busy", "true");
  answerError.textContent = "";
  answerNote.textContent = "";
  refresh();
  if (held) stop.focus();
}

function end(state, said) {
  const held = document.activeElement === stop;
  running = null;
  answer.dataset.state = state;
  answerText.setAttribute("aria-busy", "false");
  answerNote.textContent = said;
  refresh();
  if (held) send.focus();
}

async function chat() {
  if (send.disabled) return;
  begin();
  const began = performance.now();
  const took = () => {
    const passed = performance.now() - began;
    return passed < 1000 ? `${Math.round(passed)} ms` : `${(passed / 1000).toFixed(1)} s`;
  };
  const asked = model.value;
  const text = document.createTextNode("");
  let bottom = true;
  try {
    const response = await call("/v1/chat/completions", {
      method: "POST",
      headers: { ...bearer(), "Content-Type": "application/json" },
      body: JSON.stringify({
        model: asked,
        stream: true,
        messages: [{ role: "user", content: prompt.value }],
      }),
      signal: running.signal,
    });
    for await (const piece of pieces(response.body)) {
      if (text.length === 0) {
        answerText.className = "";
        answerText.replaceChildren(text);
      }
      bottom = follows();
      text.appendData(piece);
      if (bottom) answer.scrollTop = answer.scrollHeight;
    }
    if (text.length === 0) answerText.textContent = "The model answered with nothing.";
    end("done", `Answered by ${asked} in ${took()}.`);
  } catch (error) {
    if (text.length === 0) answerText.textContent = "";
    if (error.name === "AbortError") {
      if (text.length === 0) answerText.textContent = "Stopped before the first word.";
      end("stopped", `Stopped after ${took()}.`);
    } else {
      answerError.textContent = error instanceof Told ? error.message : "The connection broke off.";
      end("failed", "");
      answer.scrollTop = answer.scrollHeight;
    }
  }
}

byId("chat").addEventListener("submit", (event) => {
  event.preventDefault();
  chat();
});
stop.addEventListener("click", () => running?.abort());
prompt.addEventListener("input", refresh);
prompt.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey) || event.isComposing) return;
  event.preventDefault();
  chat();
});
refresh();
