// The page: what a person presses, and what they see and hear of it. The connection lives in link.js, the measuring in
// meter.js, the choice of a portrait in portraits.js.

import { browserKeeps as store, tabKeeps } from "./keep.js";
import { Link, Trouble, asksForToken, megabytes, openDevice, readToken, request, setToken, upload } from "./link.js";
import { Meter, drawChart, parts } from "./meter.js";
import { Portraits } from "./portraits.js";

const $ = (id) => document.getElementById(id);

const SETTLING_MS = 4000; // how long "hold still" stands where no answer comes
const RECOVER_TRIES = 5; // seconds that a server gets to finish a recording

/** What each drive is for, which devices it needs, and what the server calls it. */
const DRIVES = {
  camera: { server: "camera", needs: ["camera", "microphone"], delay: "from motion to picture", invite: "Press Start and it follows you.", text: "Your face moves the portrait, and your voice comes along in sync." },
  microphone: { server: "voice", needs: ["microphone"], delay: "from voice to picture", invite: "Press Start and speak.", text: "Your voice moves the lips; blinks and small head movements come by themselves." },
  text: { server: "voice", needs: [], invite: "Press Start, then type.", text: "Type, and the portrait speaks it." },
  file: { server: "voice", needs: [], invite: "Press Start, then play a recording.", text: "The portrait speaks a recording." },
  auto: { server: "auto", needs: ["camera", "microphone"], delay: "from motion to picture", invite: "Press Start and it follows you.", text: "Your face moves it; your voice takes the lips over while your mouth is hidden." },
};
const INSTEAD = { camera: ["microphone", "Use the microphone"], microphone: ["text", "Type text instead"] };

const app = {
  drive: "camera",
  tracks: { camera: null, microphone: null },
  background: { kind: "keep" },
  micMuted: false,
  speaking: false,
  recording: 0, // since when
  recorded: "", // the session that is, or was, recorded
  settling: 0, // the timer of "hold still" after Set neutral
};

const video = $("avatar");
const meter = new Meter(video);
const portraits = new Portraits();
const link = new Link({ describe: () => ({ ...(portraits.chosen?.upload ? { portrait_upload: portraits.chosen.upload } : { persona: portraits.chosen?.name }), drive: DRIVES[app.drive].server }) });

// -- what is said -------------------------------------------------------------------------------------------------------------

const NOTICE_MS = { info: 6000, warning: 9000 }; // an error stays until it is dismissed
const MOST_NOTICES = 3; // that go by themselves

function notify(text, { level = "info", href, action, download } = {}) {
  for (const old of [...$("notices").children]) if (old.querySelector("p").textContent === text) old.remove();
  const passing = $("notices").querySelectorAll(".notice:not([data-level=error])");
  if (passing.length >= MOST_NOTICES) passing[0].remove();
  const box = Object.assign(document.createElement("div"), { className: "notice" });
  box.dataset.level = level;
  box.append(Object.assign(document.createElement("p"), { textContent: text }));
  if (href) box.append(Object.assign(document.createElement("a"), { textContent: action, href, download: download || "" }));
  const close = Object.assign(document.createElement("button"), { type: "button", ariaLabel: "Dismiss" });
  close.innerHTML = '<svg aria-hidden="true"><use href="#i-close"/></svg>';
  close.addEventListener("click", () => dismiss(box));
  box.append(close);
  $("notices").append(box);
  const fade = () => setTimeout(() => (box.matches(":hover, :focus-within") ? fade() : box.remove()), NOTICE_MS[level] || NOTICE_MS.info);
  if (!href && level !== "error") fade();
}

/** Takes a message away; whoever closed it with the keyboard goes on at the next one, or at Start. */
function dismiss(box) {
  const focused = box.contains(document.activeElement);
  box.remove();
  if (focused) ($("notices").querySelector("button") || $("start")).focus({ preventScroll: true });
}

function report(error) {
  if (error instanceof Trouble) notify(error.kind === "refused" ? error.text : `${error.title}. ${error.text}`, { level: "error" });
  else {
    notify("Something on this page went wrong. Load it again; if it happens again, tell whoever runs this server.", { level: "error" });
    console.error(error);
  }
}

/** The card in the middle of the stage: what is going on or wrong, and up to two things to do about it. */
function card(title, text, { spinner = false, action, other } = {}) {
  $("card").hidden = !title;
  $("card").setAttribute("role", spinner ? "status" : "alert");
  if (!title) return;
  $("card-title").textContent = title;
  $("card-text").textContent = text;
  $("card-spinner").hidden = !spinner;
  for (const [button, choice] of [[$("card-action"), action], [$("card-other"), other]]) {
    button.hidden = !choice;
    if (!choice) continue;
    button.textContent = choice[0];
    button.onclick = choice[1];
  }
}

function hint(text = "") {
  $("hint").hidden = !text;
  if ($("hint").textContent !== text) $("hint").textContent = text;
}

const STATUS = { idle: "Ready", ended: "Ready", connecting: "Connecting", live: "Live", lost: "Connection lost", failed: "Not connected" };

function showState(state) {
  const live = state === "live";
  const running = live || state === "connecting" || state === "lost";
  $("stage").dataset.state = state;
  $("status").dataset.state = state;
  $("status-text").textContent = STATUS[state];
  $("start").dataset.live = running;
  $("start").querySelector("use").setAttribute("href", running ? "#i-stop" : "#i-play");
  $("start").querySelector("span").textContent = running ? "Stop" : "Start";
  for (const id of ["sound", "record", "interrupt"]) $(id).disabled = !live;
  $("neutral").disabled = !live || !DRIVES[app.drive].needs.includes("camera");
  $("mic-mute").disabled = !app.tracks.microphone;
  $("play-audio").disabled = !app.audio;
  $("invite").hidden = state !== "ended" && state !== "idle";
  if (!running) {
    $("share").hidden = true;
    $("share-idle").hidden = false;
  }
  if (!live) hint();
  if (state === "ended" || state === "failed") {
    video.hidden = true;
    for (const id of ["chip-rate", "chip-speaking"]) $(id).hidden = true;
    $("glance").textContent = "Numbers appear while the avatar is live";
  }
}

// -- devices -------------------------------------------------------------------------------------------------------------------

const wants = (what) => DRIVES[app.drive].needs.includes(what) || (what === "microphone" && $("barge-in").checked && ["text", "file"].includes(app.drive));

/** Opens what the drive needs and closes what it does not, so that a camera's light goes out when nobody looks. Raises Trouble. */
async function arrangeDevices() {
  for (const what of ["camera", "microphone"]) if (!wants(what)) setDevice(what, null);
  if (wants("camera") && !app.tracks.camera) setDevice("camera", await openDevice("camera", $("camera-device").value));
  if (wants("microphone") && !app.tracks.microphone) {
    try {
      setDevice("microphone", await openDevice("microphone", $("mic-device").value));
    } catch (trouble) {
      if (!wants("camera")) throw trouble;
      notify(`${trouble.title}: the portrait follows your face, but your voice is not sent. ${trouble.text}`, { level: "warning" });
    }
  }
  await listDevices();
}

function setDevice(what, track) {
  if (app.tracks[what] !== track) app.tracks[what]?.stop();
  app.tracks[what] = track;
  link.setTrack(what, track);
  if (track) {
    track.addEventListener("ended", () => {
      if (app.tracks[what] !== track) return;
      setDevice(what, null);
      notify(`The ${what} went away. Plug it in again or choose another one.`, { level: "warning" });
    });
  }
  if (what === "camera") {
    $("self").srcObject = track ? new MediaStream([track]) : null;
    if (track) $("self").play().catch(() => {});
    showSelf();
  } else {
    if (track) track.enabled = !app.micMuted;
    $("mic-mute").disabled = !track;
  }
}

function showSelf() {
  $("self-figure").hidden = !app.tracks.camera || !$("show-self").checked;
}

/** Camera and avatar together, so that both go where the person goes; only here, never for viewers. */
function showMirror() {
  $("stage").dataset.mirror = $("mirror").checked && DRIVES[app.drive].needs.includes("camera");
}

async function listDevices() {
  const devices = (await navigator.mediaDevices?.enumerateDevices?.()) || [];
  for (const [id, kind, name] of [["camera-device", "videoinput", "camera"], ["mic-device", "audioinput", "microphone"]]) {
    const select = $(id);
    const before = select.value || store.get(id, "");
    const options = devices.filter((one) => one.kind === kind && one.deviceId && one.deviceId !== "default").map((one, index) => new Option(one.label || `${name} ${index + 1}`, one.deviceId));
    select.replaceChildren(new Option(`Default ${name}`, ""), ...options);
    select.value = options.some(({ value }) => value === before) ? before : "";
  }
}

async function changeDevice(what, select) {
  store.set(select.id, select.value);
  if (!app.tracks[what]) return;
  try {
    const track = await openDevice(what, select.value);
    setDevice(what, track);
  } catch (trouble) {
    report(trouble);
  }
}

// -- start, stop, and what comes between ------------------------------------------------------------------------------------------

async function start() {
  card("Starting", wants("camera") ? "If your browser asks, allow the camera and the microphone." : "One moment.", { spinner: true });
  showState("connecting");
  $("start").focus({ preventScroll: true });
  try {
    await arrangeDevices();
  } catch (trouble) {
    return fail(trouble);
  }
  if ($("stage").dataset.state !== "connecting") return stop();
  card("Starting", "Waking the portrait up.", { spinner: true });
  meter.reset();
  await link.start();
}

async function stop() {
  const { sessionid } = link;
  if (app.recording) await endRecording().catch(report);
  if (link.sessionid === sessionid) leave(); // else it was stopped meanwhile, and perhaps started again
}

/** Frees the seat and the devices at once: a page that goes away has no time to wait for anything. */
function leave() {
  link.stop();
  for (const what of ["camera", "microphone"]) setDevice(what, null);
  card("");
  showState("ended");
}

function fail(trouble) {
  if (!(trouble instanceof Trouble)) {
    console.error(trouble);
    trouble = new Trouble("server", "It did not start", "Try again. If it stays like this, load the page again.");
  }
  for (const what of ["camera", "microphone"]) setDevice(what, null);
  showState("failed");
  const instead = INSTEAD[trouble.kind];
  const other = instead ? [instead[1], () => (chooseDrive(instead[0]), start())] : ["Close", () => (card(""), showState("ended"))];
  if (trouble.kind === "token") card(trouble.title, trouble.text, { action: ["Enter token", () => askToken(trouble.text, start)], other });
  else card(trouble.title, trouble.text, { action: ["Try again", start], other });
  $("card-action").focus();
}

function askToken(text, then) {
  $("token-text").textContent = text;
  $("token").value = "";
  const dialog = $("token-dialog");
  dialog.returnValue = "";
  dialog.addEventListener("close", () => {
    if (dialog.returnValue !== "ok" || !$("token").value.trim()) return;
    setToken($("token").value.trim());
    then();
  }, { once: true });
  dialog.showModal();
}

link.addEventListener("state", ({ detail: { state, trouble, wait } }) => {
  if (state === "failed") return fail(trouble);
  showState(state);
  if (state === "lost") {
    const seconds = Math.max(1, Math.round(wait / 1000));
    card("Connection lost", navigator.onLine ? `Trying to get it back; next try in ${seconds} s. Your portrait and settings are kept.` : "This computer is offline. It goes on by itself when the network is back.", { spinner: true, action: ["Try now", () => link.tryNow()] });
  }
  if (state === "live") {
    app.firstFrames = meter.count;
    arrangeDevices().catch(report); // the drive may have been changed while it connected
  }
});

link.addEventListener("stream", async ({ detail: stream }) => {
  video.hidden = false;
  if (video.srcObject === stream) return;
  video.srcObject = stream;
  try {
    await video.play();
  } catch (error) {
    if (error.name !== "NotAllowedError") return; // a newer stream took its place
    video.muted = true;
    showSound();
    video.play().catch(() => {});
    notify("The browser keeps the sound off until you press the sound button.", { level: "warning" });
  }
});

link.addEventListener("open", () => {
  tell("drive", DRIVES[app.drive].server);
  tell("barge_in", $("barge-in").checked);
  tell("return_voice", $("return-voice").checked);
  if (app.background.kind !== "keep") tell("background", app.background);
});

addEventListener("online", () => link.state === "lost" && link.tryNow());
addEventListener("pagehide", leave);
addEventListener("pageshow", () => app.recording && endRecording().catch(report)); // back from the browser's memory: the server has ended it
addEventListener("beforeunload", (event) => {
  if (app.recording) event.preventDefault(); // the browser asks whether to leave
});

/** A sentence under the picture, for as long as it is true. */
function tellOf(id, text) {
  $(id).textContent = text || "";
  $(id).hidden = !text;
}

const tell = (name, value) => link.send({ type: "set", [name]: value });

// -- what the server says ---------------------------------------------------------------------------------------------------------

const heard = {
  pong: (message) => meter.pong(message),
  frames: ({ pairs }) => meter.pair(pairs),
  stats: (message) => {
    app.stats = message;
    tellOf("overrun", message.overrun);
    if (message.speaking !== undefined) showSpeaking(message.speaking);
  },
  hello: ({ limits, notice, view, sessionid }) => {
    meter.meet();
    tellOf("about", notice);
    tellOf("overrun", "");
    if (limits?.text) $("words").maxLength = limits.text;
    app.face = app.neutral = undefined; // of the session before
    if (app.recording && sessionid !== app.recorded) endRecording().catch(report); // the session that was recorded is over
    share(view || sessionid);
  },
  state: (message) => {
    if (message.speaking !== undefined) showSpeaking(message.speaking);
    if (message.face !== undefined) app.face = message.face;
    if (message.neutral === "set" && app.neutral !== "set") settled();
    if (message.neutral !== undefined) app.neutral = message.neutral;
    showFace();
  },
  notice: ({ level, text }) => {
    settled();
    showFace();
    notify(text, { level });
  },
  bye: async ({ reason }) => {
    if (link.state !== "live") return;
    await stop();
    card("The session has ended", reason || "The server closed it. Press Start to begin a new one.", { action: ["Start again", start], other: ["Close", () => card("")] });
  },
};
link.addEventListener("message", ({ detail }) => heard[detail.type]?.(detail));

/** Links for those who only watch. `name`: what the server lets them in by, which opens nothing else. */
async function share(name) {
  const token = readToken();
  const secret = token && (await asksForToken()) ? `#token=${encodeURIComponent(token)}` : "";
  $("view-url").value = $("view-open").href = `${location.origin}/view?sessionid=${name}${secret}`;
  $("whep-url").value = `${location.origin}/whep?sessionid=${name}`;
  $("share").hidden = !link.sessionid;
  $("share-idle").hidden = Boolean(link.sessionid);
}

function showSpeaking(speaking) {
  app.speaking = speaking;
  $("chip-speaking").hidden = !speaking;
}

function showFace() {
  if (!DRIVES[app.drive].needs.includes("camera") || link.state !== "live") return hint();
  if (app.face === "lost") return hint(`I cannot see your face. Move into the picture, or turn a light on in front of you${app.settling ? "; then press Set neutral again" : ""}.`);
  if (app.settling) return hint("Hold still and look straight ahead…");
  if (app.neutral === "searching") return hint("Look straight ahead for a moment so that the avatar learns your neutral face.");
  hint();
}

/** Asks for a new neutral. Whether there is one is for the server to say, in a state or a notice. */
function setNeutral() {
  if (!link.send({ type: "neutral" })) return;
  settled();
  app.settling = setTimeout(() => {
    settled();
    showFace();
  }, SETTLING_MS);
  showFace();
}

function settled() {
  clearTimeout(app.settling);
  app.settling = 0;
}

/** How loud the microphone is, as a bar under its button: the simplest answer to "does it hear me?". */
async function showLevel() {
  const sender = link.state === "live" && app.tracks.microphone && !app.micMuted && link.senders?.microphone;
  let level = 0;
  if (sender) for (const entry of (await sender.getStats()).values()) if (entry.type === "media-source") level = entry.audioLevel || 0;
  $("mic-mute").style.setProperty("--level", Math.min(1, Math.sqrt(level) * 1.4).toFixed(2));
}

/** Whether anything can be heard here; one's own voice comes back only on request. */
const isAudible = () => !video.muted && (app.speaking || $("return-voice").checked || ["text", "file"].includes(app.drive));

const ms = (value) => (Number.isFinite(value) ? `${Math.round(value)} ms` : "–");

/** Once a second: the card goes when pictures come, the numbers move. */
function tick() {
  const reading = meter.tick();
  if (link.state !== "live") return;
  if (meter.count > app.firstFrames) card("");
  const { fps, p50 } = reading;
  const { delay } = DRIVES[app.drive]; // text and files have nobody to be late for
  $("chip-rate").hidden = !fps;
  const brief = `${Math.round(fps)} fps${delay && Number.isFinite(p50) ? ` · ${Math.round(p50)} ms` : ""}`;
  $("chip-rate").textContent = brief;
  if (!meter.sees) $("glance").textContent = "This browser does not tell when a picture is shown";
  else $("glance").textContent = delay && Number.isFinite(p50) ? `${brief} ${delay}` : brief;
  if (app.recording) showRecordTime();
  if ($("performance").open) showPerformance(reading);
}

function showPerformance(reading) {
  const { fps, p50, p95 } = reading;
  const stats = app.stats || {};
  const kind = DRIVES[app.drive].needs.includes("camera") ? "motion" : app.drive === "microphone" ? "voice" : "sound";
  for (const [id, which] of [["n-p50", "median"], ["n-p95", "95 of 100"]]) $(id).nextElementSibling.textContent = `${kind} to photon, ${which}`;
  $("n-fps").textContent = Number.isFinite(fps) ? fps.toFixed(fps < 10 ? 1 : 0) : "–";
  $("n-p50").textContent = ms(p50);
  $("n-p95").textContent = ms(p95);
  $("n-av").textContent = ms(stats.av_offset_ms?.p50);
  drawChart($("chart"), meter.history);
  const shown = parts(stats.stages, reading);
  const total = shown.reduce((sum, part) => sum + part.ms, 0);
  const bar = shown.map(({ ms: length, colour }) => {
    const piece = document.createElement("i");
    piece.style.background = colour;
    piece.style.width = `${(100 * length) / total}%`;
    return piece;
  });
  $("stack").replaceChildren(...bar);
  $("parts").replaceChildren(
    ...shown.map(({ name, ms: length, colour }) => {
      const item = document.createElement("li");
      const dot = document.createElement("i");
      dot.style.background = colour;
      item.append(dot, name, Object.assign(document.createElement("b"), { textContent: `${length.toFixed(1)} ms` }));
      return item;
    }),
  );
  $("drops").textContent = describeDrops(stats);
}

/** What the server counts as left out, in words. */
const CAUSES = {
  camera: "camera pictures overtaken by newer ones",
  camera_fps: "camera pictures above the rate limit",
  camera_gaps: "packets of the camera's picture, lost on the way",
  camera_withheld: "camera pictures between a loss and the next whole picture",
  camera_decoder: "camera pictures that came faster than they could be decoded",
  camera_unread: "camera pictures that nobody came for",
  window: "camera pictures that came too late for their place",
  slot: "finished pictures overtaken by newer ones",
  late: "finished pictures that came too late for their sound",
  queue: "finished pictures that waited too long for their sound",
  grid: "finished pictures of the drive before this one",
  interrupt: "finished pictures, by Interrupt",
  encoder: "pictures overtaken before they were encoded",
  link: "pictures that the connection was too slow for",
  voice: "pieces of sound that could not be sent in time",
  viewer: "pictures that a viewer's connection was too slow for",
  viewer_encoder: "pictures for viewers, overtaken before they were encoded",
  viewer_voice: "pieces of sound that could not be sent to a viewer in time",
  mic: "pieces of the microphone's sound, too late or too many at once",
  mic_late: "pieces of the microphone's sound that were waited for in vain",
  mic_gaps: "packets of the microphone's sound, lost on the way",
  mic_withheld: "pieces of the microphone's sound after a loss",
  mic_decoder: "pieces of the microphone's sound that came faster than they could be decoded",
  mic_unread: "pieces of the microphone's sound that nobody came for",
  hearing: "pieces of sound that the lips have not heard",
  sound_starved: "gaps in the returned sound",
  ticks: "pieces of sound, while the server stood still",
  record: "pictures missing in the recording",
  record_limit: "recordings ended at their longest",
  channel: "numbers for this panel",
  messages: "messages of this page above the rate limit",
};

function describeDrops({ drops = {}, ladder, camera_fps: cameraFps }) {
  const counts = new Map();
  for (const [cause, count] of Object.entries(drops)) {
    const words = CAUSES[cause] || "things that this page has no word for";
    if (count) counts.set(words, (counts.get(words) || 0) + count);
  }
  const lost = [...counts].map(([words, count]) => `${words} (${count})`);
  const lines = [lost.length ? `Left out so far: ${lost.join("; ")}.` : "Nothing was left out."];
  if (Number.isFinite(cameraFps) && cameraFps) lines.push(`The camera delivers ${Math.round(cameraFps)} pictures a second.`);
  const rung = ladder?.rung ?? ladder;
  if (rung) lines.push(`The server is busy and has stepped this session down: ${ladder.name || ladder.text || `step ${rung}`}.`);
  else lines.push("Full size, full rate.");
  return lines.join(" ");
}

// -- drive, sound, speech -----------------------------------------------------------------------------------------------------------

function chooseDrive(drive) {
  document.querySelector(`input[name="drive"][value="${drive}"]`).checked = true;
  setDrive(drive);
}

async function setDrive(drive) {
  app.drive = drive;
  store.set("drive", drive);
  $("drive-text").textContent = DRIVES[drive].text;
  $("invite-text").textContent = DRIVES[drive].invite;
  const barge = $("barge-in").checked && ["text", "file"].includes(drive);
  for (const control of document.querySelectorAll("[data-for]")) {
    const modes = control.dataset.for.split(" ");
    control.hidden = !modes.includes(drive) && !(barge && modes.includes("barge"));
  }
  $("headphones").hidden = !$("return-voice").checked || !DRIVES[drive].needs.length;
  showMirror();
  if (link.state !== "live" && link.state !== "lost") return;
  try {
    await arrangeDevices();
  } catch (trouble) {
    report(trouble);
  }
  if (app.drive !== drive) return;
  tell("drive", DRIVES[drive].server);
  showState(link.state);
  showFace();
}

async function sessionFor(doing) {
  if (link.state === "live") return link.sessionid;
  notify(`Press Start first, then ${doing}.`);
  $("start").focus();
  return "";
}

async function speak(type) {
  const text = $("words").value.trim() || (type === "echo" ? $("words").placeholder : "");
  if (!text) return $("words").focus();
  const sessionid = await sessionFor("let it speak");
  if (!sessionid) return;
  await busy($(type === "chat" ? "ask" : "speak"), () => request("/human", { json: { sessionid, text, type, interrupt: app.speaking } }));
  $("words").select();
}

async function playAudio() {
  const sessionid = await sessionFor("play the file");
  if (!sessionid || !app.audio) return;
  await busy($("play-audio"), () => upload("/humanaudio", { sessionid, file: app.audio }));
}

function chooseAudio(file) {
  if (!file) return;
  app.audio = file;
  $("audio-name").textContent = `${file.name} (${megabytes(file.size)})`;
  $("play-audio").disabled = false;
}

async function busy(button, work) {
  button.disabled = true;
  try {
    return await work();
  } catch (error) {
    report(error);
  } finally {
    button.disabled = false;
  }
}

function interrupt() {
  link.send({ type: "interrupt" });
}

function toggleMic() {
  app.micMuted = !app.micMuted;
  if (app.tracks.microphone) app.tracks.microphone.enabled = !app.micMuted;
  press($("mic-mute"), app.micMuted, ["#i-mic", "#i-mic-off"], ["Mute mic", "Unmute mic"]);
}

function showSound() {
  press($("sound"), video.muted, ["#i-sound", "#i-sound-off"], ["Mute sound", "Unmute"]);
}

function press(button, pressed, icons, words) {
  button.setAttribute("aria-pressed", pressed);
  button.querySelector("use").setAttribute("href", icons[Number(pressed)]);
  button.querySelector("span").textContent = words[Number(pressed)];
}

// -- background ---------------------------------------------------------------------------------------------------------------------

function setBackground(background) {
  app.background = background;
  tell("background", background);
}

function chooseBackground(kind) {
  for (const control of document.querySelectorAll("[data-background]")) control.hidden = control.dataset.background !== kind;
  if (kind === "colour") setBackground({ kind, colour: $("colour").value });
  else if (kind !== "picture") setBackground({ kind });
  else if (app.backgroundPicture) setBackground({ kind, picture: app.backgroundPicture });
  else $("background-file").click();
}

async function uploadBackground(file) {
  if (!file) return;
  await busy($("choose-background"), async () => {
    const { id } = await upload("/upload", { kind: "background", picture: file });
    app.backgroundPicture = id;
    $("background-name").textContent = file.name;
    document.querySelector('input[name="background"][value="picture"]').checked = true;
    chooseBackground("picture");
  });
}

// -- recording ------------------------------------------------------------------------------------------------------------------------

const recordName = () => `avatar-${new Date().toISOString().slice(0, 19).replaceAll(":", "").replace("T", "-")}.mp4`;

async function beginRecording() {
  await busy($("record"), async () => {
    await request("/record", { json: { sessionid: link.sessionid, type: "start_record" } });
    app.recording = Date.now();
    app.recorded = link.sessionid;
    tabKeeps.set("recording", app.recorded);
    press($("record"), true, ["#i-record", "#i-stop"], ["Record", "Stop rec."]);
    $("chip-record").hidden = false;
    showRecordTime();
  });
}

async function endRecording() {
  const sessionid = app.recorded;
  app.recording = 0;
  press($("record"), false, ["#i-record", "#i-stop"], ["Record", "Stop rec."]);
  $("chip-record").hidden = true;
  // Where the session has ended its recording has too, and the file is there all the same.
  const refused = await request("/record", { json: { sessionid, type: "end_record" } }).then(() => null, (trouble) => trouble);
  await fetchRecording(sessionid).catch((trouble) => {
    throw refused || trouble;
  });
}

/** Brings a finished recording here. Raises Trouble. */
async function fetchRecording(sessionid) {
  const file = await request(`/record/${sessionid}`, { as: "blob" });
  if (tabKeeps.get("recording") === sessionid) tabKeeps.set("recording", "");
  const href = URL.createObjectURL(file);
  const download = recordName();
  const item = document.createElement("li");
  const anchor = Object.assign(document.createElement("a"), { href, download });
  anchor.innerHTML = '<svg aria-hidden="true"><use href="#i-down"/></svg>';
  anchor.append(`${download} (${megabytes(file.size)})`);
  item.append(anchor);
  $("recording-list").prepend(item);
  $("recordings").hidden = false;
  notify("The recording is ready.", { href, action: "Download", download });
}

/** This tab was closed or loaded again while it recorded: the server ends the file with the session, and may still be at it. */
async function recoverRecording() {
  const sessionid = tabKeeps.get("recording", "");
  for (let tries = 0; sessionid && tries < RECOVER_TRIES; tries += 1) {
    try {
      return await fetchRecording(sessionid);
    } catch {
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }
  if (!app.recording) tabKeeps.set("recording", "");
}

function showRecordTime() {
  const seconds = Math.floor((Date.now() - app.recording) / 1000);
  $("record-time").textContent = `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
}

// -- portrait -------------------------------------------------------------------------------------------------------------------------

portraits.addEventListener("choose", async ({ detail: { choice } }) => {
  if (choice.name) store.set("persona", choice.name);
  if (choice.src) $("still").src = choice.src;
  else $("still").removeAttribute("src");
  $("still").alt = `Portrait: ${choice.label}`;
  $("invite-name").textContent = choice.label;
  if (["live", "lost", "connecting"].includes(link.state)) {
    if (app.recording) await endRecording().catch(report);
    link.stop();
    start();
  } else if (link.state === "failed" || $("stage").dataset.state === "failed") {
    card("");
    showState("ended");
  }
});

/** The light around the portrait: a few of its pixels, dimmed and stretched, which costs nothing while the avatar moves. */
$("still").addEventListener("load", () => {
  const canvas = $("ambient");
  const pen = canvas.getContext("2d");
  pen.filter = "blur(1.5px) saturate(1.2) brightness(0.42)";
  pen.drawImage($("still"), -2, -2, canvas.width + 4, canvas.height + 4);
});

/** The persona that the address names (the studio's link), once: later choices are remembered, not overruled. */
function askedFor() {
  const asked = new URLSearchParams(location.search);
  const name = asked.get("persona");
  if (name === null) return "";
  asked.delete("persona");
  history.replaceState(null, "", `${location.pathname}${asked.size ? `?${asked}` : ""}${location.hash}`);
  return name;
}

async function loadPortraits() {
  try {
    await portraits.load(askedFor() || store.get("persona", ""));
  } catch (trouble) {
    if (trouble.kind !== "token") return fail(trouble), ($("card-action").onclick = () => location.reload());
    card(trouble.title, trouble.text, { action: ["Enter token", () => askToken(trouble.text, () => (card(""), loadPortraits()))] });
  }
}

// -- hands ----------------------------------------------------------------------------------------------------------------------------

const on = (id, type, act) => $(id).addEventListener(type, (event) => Promise.resolve(act(event)).catch(report));
const radios = (name, act) => document.querySelectorAll(`input[name="${name}"]`).forEach((radio) => radio.addEventListener("change", () => act(radio.value)));

on("start", "click", () => ($("start").dataset.live === "true" ? stop() : start()));
on("mic-mute", "click", toggleMic);
on("sound", "click", () => {
  video.muted = !video.muted;
  showSound();
});
on("neutral", "click", setNeutral);
on("interrupt", "click", interrupt);
on("record", "click", () => (app.recording ? endRecording() : beginRecording()));
on("full", "click", () => (document.fullscreenElement ? document.exitFullscreen() : $("stage-frame").requestFullscreen?.()));
addEventListener("fullscreenchange", () => (document.fullscreenElement || document.body).append($("notices"))); // else they are hidden behind it
on("help", "click", () => $("help-dialog").showModal());
on("speak", "click", () => speak("echo"));
on("ask", "click", () => speak("chat"));
on("words", "keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return undefined;
  event.preventDefault();
  return speak("echo");
});
on("choose-audio", "click", () => $("audio-file").click());
on("audio-file", "change", ({ target }) => chooseAudio(target.files[0]));
on("play-audio", "click", playAudio);
on("camera-device", "change", ({ target }) => changeDevice("camera", target));
on("mic-device", "change", ({ target }) => changeDevice("microphone", target));
on("show-self", "change", showSelf);
on("mirror", "change", ({ target }) => {
  store.set("mirror", target.checked);
  showMirror();
});
on("barge-in", "change", ({ target }) => {
  tell("barge_in", target.checked);
  return setDrive(app.drive);
});
on("return-voice", "change", ({ target }) => {
  tell("return_voice", target.checked);
  $("headphones").hidden = !target.checked;
});
on("colour", "input", () => chooseBackground("colour"));
on("choose-background", "click", () => $("background-file").click());
on("background-file", "change", ({ target }) => uploadBackground(target.files[0]));
on("use-keys", "change", ({ target }) => store.set("keys", target.checked));
on("performance", "toggle", () => store.set("performance", $("performance").open));
radios("drive", setDrive);
radios("background", chooseBackground);
for (const swatch of document.querySelectorAll(".swatch")) {
  swatch.style.background = swatch.dataset.colour;
  swatch.addEventListener("click", () => {
    $("colour").value = swatch.dataset.colour;
    chooseBackground("colour");
  });
}
for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", async () => {
    await navigator.clipboard?.writeText($(button.dataset.copy).value).catch(() => $(button.dataset.copy).select());
    notify("Copied.");
  });
}

for (const button of document.querySelectorAll("[data-close]")) button.addEventListener("click", () => button.closest("dialog").close());
$("portrait-dialog").querySelector("form").addEventListener("submit", (event) => {
  event.preventDefault(); // Enter uses the picture where that is allowed, and never throws it away
  for (const id of ["portrait-use", "shot-take"]) if (!$(id).hidden && !$(id).disabled) $(id).click();
});

const KEYS = { s: "start", m: "mic-mute", v: "sound", n: "neutral", i: "interrupt", r: "record", f: "full" };
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.isComposing && !document.querySelector("dialog[open]") && $("notices").lastChild) return dismiss($("notices").lastChild);
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.target.closest?.("textarea, select, input:not([type=radio], [type=checkbox])") || !$("use-keys").checked) return;
  const key = event.key.toLowerCase();
  if (KEYS[key] && !event.repeat) $(KEYS[key]).click();
  else if (key === "p") $("performance").open = !$("performance").open;
  else if (key === "?") $("help-dialog").showModal();
  else if ("12345".includes(key)) chooseDrive(Object.keys(DRIVES)[Number(key) - 1]);
  else return;
  event.preventDefault();
});

let dragDepth = 0;
const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
addEventListener("dragenter", (event) => hasFiles(event) && ((dragDepth += 1), ($("veil").hidden = false)));
addEventListener("dragleave", (event) => hasFiles(event) && (dragDepth -= 1) <= 0 && ($("veil").hidden = true));
addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
addEventListener("drop", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  dragDepth = 0;
  $("veil").hidden = true;
  const [file] = event.dataTransfer.files;
  if (!file?.type.startsWith("audio/")) return void (file && portraits.offer(file));
  chooseAudio(file);
  chooseDrive("file");
});

// -- begin ----------------------------------------------------------------------------------------------------------------------------

readToken();
$("use-keys").checked = store.get("keys", true);
$("mirror").checked = store.get("mirror", true);
$("performance").open = store.get("performance", false);
for (const control of document.querySelectorAll("[data-background]")) control.hidden = true;
if (!document.fullscreenEnabled) $("full").hidden = true;
meter.report = (frames) => link.send({ type: "shown", frames });
chooseDrive(DRIVES[store.get("drive", "camera")] ? store.get("drive", "camera") : "camera");
showState("idle");
navigator.mediaDevices?.addEventListener?.("devicechange", () => listDevices().catch(() => {}));
listDevices().catch(() => {}); // the default ones remain
loadPortraits().catch(report);
recoverRecording();
setInterval(tick, 1000);
setInterval(() => showLevel().catch(() => {}), 250);
setInterval(() => link.align(isAudible()).catch(() => {}), 500);
pageStarted();
