// The studio's side that records a minute: what the person is asked to do, what is ticked, what is wrong, and what to type next.
// Recording and sending live in take.js; what counts as done is the server's to say (streaming/guide.py).

import { browserKeeps as store } from "./keep.js";
import { Trouble, asksForToken, megabytes, openDevice, readToken, request } from "./link.js";
import { Take, kindOf } from "./take.js";
import { askToken } from "./token.js";

const $ = (id) => document.getElementById(id);

const ARROWS = { left: "←", right: "→", up: "↑", down: "↓" }; // as the mirror shows it
const DONE_MS = 1200; // how long "that is all" stands before the recording ends by itself
const BEST = { width: { ideal: 1280 }, height: { ideal: 720 }, frameRate: { ideal: 30 } };
const SLOW = 22; // pictures a second from which the training will say so, too
const TEACH = "It collects what is good in the folder, says what it left out and why, trains for about a quarter of an hour, and keeps the persona with your statement.";
const STATUS = { setup: "Ready", opening: "Opening", recording: "Recording", saving: "Saving", done: "Saved", failed: "Not recorded" };
const LIGHTS = { opening: "connecting", saving: "connecting", recording: "live", failed: "failed" };
const DEVICES = [["camera-device", "videoinput", "camera"], ["mic-device", "audioinput", "microphone"]];

const app = { state: "setup", take: null, tracks: {}, tasks: [], asked: null, passed: new Set(), current: "", missing: [], most: 0 };

// -- what is said -------------------------------------------------------------------------------------------------------------

function card(title, text = "", { spinner = false, action, other } = {}) {
  $("card").hidden = !title;
  $("card").setAttribute("role", spinner ? "status" : "alert");
  $("card-title").textContent = title;
  $("card-text").textContent = text;
  $("card-spinner").hidden = !spinner;
  for (const [button, choice] of [[$("card-action"), action], [$("card-other"), other]]) {
    button.hidden = !choice;
    if (choice) [button.textContent, button.onclick] = choice;
  }
}

function hint(text = "", bad = false) {
  $("hint").hidden = !text;
  $("hint").classList.toggle("bad", bad);
  if ($("hint").textContent !== text) $("hint").textContent = text;
}

function become(state) {
  app.state = state;
  $("stage").dataset.state = state;
  $("status-text").textContent = STATUS[state];
  $("status").dataset.state = LIGHTS[state] || "idle";
  const recording = state === "recording";
  const busy = recording || state === "opening" || state === "saving";
  $("record").dataset.live = recording;
  $("record").querySelector("use").setAttribute("href", recording ? "#i-stop" : "#i-record");
  $("record").querySelector("span").textContent = recording ? "Stop and keep" : "Record a minute";
  for (const id of ["pass", "discard"]) $(id).disabled = !recording;
  for (const id of ["name", "consent", "camera-device", "mic-device"]) $(id).disabled = busy;
  for (const id of ["say", "chip-time", "chip-use"]) $(id).hidden = !recording;
  $("setup").hidden = recording || state === "saving";
  $("invite").hidden = busy || state === "failed";
  if (!recording) {
    clearTimeout(app.ending); // it would end the next one
    hint();
  }
  mayBegin();
}

/** Whether everything is there to begin, and in words what is not. */
function mayBegin() {
  const lacks = !$("consent").checked ? "First tick that you are the person in the picture or have their permission." : !/[\p{L}\p{N}]/u.test($("name").value) ? "First give the recording a name, with a letter or a digit in it." : "";
  const idle = !["opening", "saving", "recording"].includes(app.state);
  $("record").disabled = app.state === "opening" || app.state === "saving" || (idle && Boolean(lacks));
  $("again").disabled = Boolean(lacks);
  $("why-not").textContent = idle ? lacks : "";
}

/** What went wrong, in words, and a way on: `again`. */
function fail(error, again = record) {
  if (!(error instanceof Trouble)) {
    console.error(error);
    error = new Trouble("server", "It did not work", "Try again. If it stays like this, load the page again.");
  }
  closeDevices();
  become("failed");
  const action = error.kind === "token" ? ["Enter token", () => askToken(again)] : ["Try again", again];
  card(error.title, error.text, { action, other: ["Close", () => (card(""), become("setup"))] });
  $("card-action").focus();
}

// -- devices -------------------------------------------------------------------------------------------------------------------

const ELSE = { NotFoundError: (what) => `Plug a ${what} in, then try again.` };

/** A device, or null for a microphone that is not there. Raises Trouble for a camera. */
async function open(what) {
  try {
    return await openDevice(what, $(what === "camera" ? "camera-device" : "mic-device").value);
  } catch (trouble) {
    if (trouble.kind === "insecure") throw new Trouble("insecure", trouble.title, "Browsers only open cameras on https:// or on localhost. Open this page that way.");
    const text = ELSE[trouble.reason]?.(what) || trouble.text;
    if (what === "camera") throw new Trouble("camera", trouble.title, text, { reason: trouble.reason });
    app.silent = `${trouble.title}, so no sound is recorded and the voice alone will not move this avatar as well.`;
    return null;
  }
}

async function openDevices() {
  app.silent = "";
  closeDevices();
  const camera = (app.tracks.camera = await open("camera"));
  await camera.applyConstraints(BEST).catch(() => {}); // a camera that cannot gives what it has
  app.tracks.microphone = await open("microphone");
  camera.addEventListener("ended", () => gone(camera));
  $("self").srcObject = new MediaStream([camera]);
  await $("self").play();
  await listDevices();
}

/** The camera was unplugged, or another program took it. */
function gone(camera) {
  if (app.tracks.camera !== camera || app.state !== "recording") return;
  app.note = "The camera went away, so the recording ends there.";
  finish();
}

function closeDevices() {
  for (const track of Object.values(app.tracks)) track?.stop();
  app.tracks = {};
  $("self").srcObject = null;
}

async function listDevices() {
  const devices = (await navigator.mediaDevices?.enumerateDevices?.()) || [];
  for (const [id, kind, name] of DEVICES) {
    const before = $(id).value || store.get(id, "");
    const found = devices.filter((one) => one.kind === kind && one.deviceId && one.deviceId !== "default");
    $(id).replaceChildren(new Option(`Default ${name}`, ""), ...found.map((one, index) => new Option(one.label || `${name} ${index + 1}`, one.deviceId)));
    $(id).value = found.some(({ deviceId }) => deviceId === before) ? before : "";
  }
}

// -- what to ask for -----------------------------------------------------------------------------------------------------------

/** The tasks, asked for once, and again where they did not come. Raises Trouble. */
function learnTasks() {
  app.asked ||= request("/studio/tasks").then((tasks) => {
    app.tasks = tasks;
    drawTasks();
  }).catch((trouble) => {
    app.asked = null;
    throw trouble;
  });
  return app.asked;
}

async function prepare() {
  try {
    await learnTasks();
    if (app.state === "failed") {
      card("");
      become("setup");
    }
  } catch (trouble) {
    if (app.state !== "opening") fail(trouble, prepare); // a recording that waits for them says it itself
  }
}

// -- recording -----------------------------------------------------------------------------------------------------------------

async function record() {
  become("opening");
  card("Starting", "If your browser asks, allow the camera and the microphone.", { spinner: true });
  $("result").hidden = true;
  app.note = "";
  try {
    kindOf();
    await learnTasks(); // before the camera is asked for
    await openDevices();
    const take = new Take($("self"), app.tracks);
    app.take = take;
    take.addEventListener("progress", ({ detail }) => app.take === take && progress(detail));
    take.addEventListener("trouble", ({ detail }) => app.take === take && fail(detail));
    const said = await take.begin({ name: $("name").value, consent: $("consent-text").textContent });
    if (app.take !== take || take.over) return;
    app.most = said.most_seconds;
    app.passed = new Set(app.tracks.microphone ? [] : ["read"]);
    app.current = "";
    app.ending = 0;
    card("");
    become("recording");
    progress(said);
    $("record").focus({ preventScroll: true });
    $("stage").scrollIntoView({ block: "nearest" });
  } catch (trouble) {
    app.take?.discard();
    fail(trouble);
  }
}

/** What the server has seen so far. */
function progress(said) {
  if (app.state !== "recording") return;
  app.missing = said.missing;
  const left = said.missing.filter((key) => !app.passed.has(key));
  if (!left.includes(app.current)) app.current = left[0] || "";
  for (const task of said.tasks) drawTask(task, said.missing);
  const now = app.tasks.find(({ key }) => key === app.current);
  say(now, said.tasks.find(({ key }) => key === app.current));
  $("pass").disabled = !now;
  $("chip-use").textContent = `${Math.floor(said.seconds)} s of use`;
  if (said.warning) hint(said.warning, true);
  else hint(document.hidden ? "This page is hidden: it goes on recording, but hardly sees what you do." : said.advice || app.silent);
  if (!now && !app.ending) {
    app.ending = setTimeout(() => app.state === "recording" && app.current === "" && finish(), DONE_MS);
  }
}

function say(task, told) {
  const text = task?.say || (app.missing.length ? "That is all but what was skipped" : "That is all, thank you");
  $("say-arrow").textContent = ARROWS[task?.key] || "";
  if ($("say-text").textContent !== text) $("say-text").textContent = text;
  $("say-read").hidden = !task?.read;
  $("say-read").textContent = task?.read || "";
  $("say-now").hidden = !task;
  $("say-now").value = told ? Math.max(told.share, 0.15 * told.now) : 1;
}

function drawTasks() {
  $("tasks").replaceChildren(
    ...app.tasks.map(({ key, title }) => {
      const row = document.createElement("li");
      row.dataset.key = key;
      row.innerHTML = '<span class="tick"><svg aria-hidden="true"><use href="#i-check"/></svg></span><span></span><progress max="1" value="0"></progress>';
      row.children[1].textContent = title;
      row.children[2].setAttribute("aria-label", title);
      return row;
    }),
  );
}

function drawTask({ key, share }, missing) {
  const row = $("tasks").querySelector(`[data-key="${key}"]`);
  if (!row) return;
  row.dataset.done = !missing.includes(key);
  row.querySelector("progress").value = share;
  if (key === app.current) row.setAttribute("aria-current", "step");
  else row.removeAttribute("aria-current");
}

function pass() {
  app.passed.add(app.current);
  app.current = app.missing.find((key) => !app.passed.has(key)) || "";
}

function discard() {
  app.take?.discard();
  app.take = null;
  closeDevices();
  become("setup");
  card("Discarded", "Nothing of that recording was kept.", { action: ["Record again", record], other: ["Close", () => card("")] });
}

async function finish() {
  const { take } = app;
  if (app.state !== "recording") return;
  become("saving");
  card("Saving", "The last pieces are on their way to the server's disk.", { spinner: true });
  try {
    const saved = await take.finish();
    if (saved) show(saved);
  } catch (trouble) {
    take.discard();
    if (app.take === take) fail(trouble);
  }
}

// -- afterwards ----------------------------------------------------------------------------------------------------------------

const list = (words) => words.join(", ").replace(/, ([^,]*)$/, " and $1");

function show(saved) {
  app.take = null;
  closeDevices();
  card("");
  become("done");
  const titles = saved.missing.map((key) => app.tasks.find((task) => task.key === key)?.title || key);
  const lost = Object.entries(saved.dropped).filter(([, seconds]) => seconds >= 1).map(([reason, seconds]) => `${reason} ${seconds.toFixed(0)} s`);
  $("result-title").textContent = titles.length ? "Saved, but something is missing" : "Saved: everything is there";
  const rate = saved.pictures / saved.seconds;
  $("result-text").textContent = [
    app.note,
    `${saved.seconds.toFixed(0)} s of ${saved.size.join(" × ")}, ${megabytes(saved.bytes)}, ${saved.sound ? "with sound" : "without sound"}; ${saved.seconds_of_use.toFixed(0)} s of it are of use.`,
    lost.length ? `Left out: ${list(lost)}.` : "",
    rate < SLOW ? `Only ${rate.toFixed(0)} pictures a second came: more light, or fewer other programs, make a camera faster.` : "",
  ].filter(Boolean).join(" ");
  $("result-path").textContent = `On the server's disk: ${saved.path}`;
  $("lacking").hidden = !titles.length;
  $("lacking-list").replaceChildren(...titles.map((title) => Object.assign(document.createElement("li"), { textContent: title })));
  $("command").value = saved.command;
  $("next-text").textContent = `Type this on the machine that runs this server. ${TEACH}`;
  $("result").hidden = false;
  $("result").scrollIntoView({ block: "nearest" });
  $("result-title").focus({ preventScroll: true });
}

async function copy() {
  const told = $("copy").querySelector("span");
  try {
    await navigator.clipboard.writeText($("command").value);
    told.textContent = "Copied";
  } catch {
    $("command").select(); // a page without https may not: the person can
    told.textContent = "Press Ctrl+C";
  }
  setTimeout(() => (told.textContent = "Copy"), 2500);
}

function tickTime() {
  if (app.state !== "recording") return;
  const { seconds } = app.take;
  $("time").textContent = `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
  if (seconds > app.most) {
    app.note = "The recording has reached the longest time that this server takes.";
    finish();
  }
}

// -- wiring --------------------------------------------------------------------------------------------------------------------

$("record").addEventListener("click", () => (app.state === "recording" ? finish() : record()));
$("again").addEventListener("click", record);
$("pass").addEventListener("click", pass);
$("discard").addEventListener("click", discard);
$("copy").addEventListener("click", copy);
for (const id of ["name", "consent"]) $(id).addEventListener("input", mayBegin);
for (const [id] of DEVICES) $(id).addEventListener("change", () => store.set(id, $(id).value));
setInterval(tickTime, 250);

addEventListener("beforeunload", (event) => {
  if (app.state === "recording" || app.state === "saving") event.preventDefault(); // the browser asks whether to leave
});
addEventListener("pagehide", () => {
  if (app.state !== "recording" && app.state !== "saving") return;
  store.set("broken-off", app.state);
  if (app.state === "recording") app.take?.discard(); // what is being saved may be whole already
  closeDevices();
});
addEventListener("pageshow", () => {
  const was = store.get("broken-off", "");
  if (!was) return;
  store.set("broken-off", "");
  app.take = null;
  become("setup");
  const fate = was === "saving" ? "while it was being saved: look in its folder whether it is there" : "so nothing of it was kept: record it again";
  card("Broken off", `The page was closed or loaded anew during the last recording, ${fate}.`, { action: ["Close", () => card("")] });
});

readToken();
listDevices().catch(() => {});
become("setup");
prepare();
pageStarted();
if (await asksForToken()) card("An access token is needed", "This server asks for an access token. Paste the one that its operator gave you.", { action: ["Enter token", () => askToken(() => card(""))] });
