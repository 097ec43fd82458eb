// The picture alone, for OBS's browser source or a big screen: watches a session over WHEP and comes back by itself.
// /view?sessionid=…  [&background=black|green|…] [&fit=cover] [&quiet] (no words on the picture)  [#token=…]

import { gathered, hangUp, iceServers, readToken, request } from "./link.js";

const options = new URLSearchParams(location.search);
const session = options.get("sessionid") || options.get("session") || "";
const video = document.getElementById("avatar");
const words = document.getElementById("words");
const BACKOFF_MS = [500, 1000, 2000, 5000, 10000, 15000];
const SILENT_STEPS = 4; // of these where no server answers: it may be back any moment; one that said no is asked less often
const LOOK_MS = 1000;
const FIRST_MS = 10000; // what the first picture of an attempt may take
const STALL_MS = 5000; // no new picture for so long: connect again

let current = null; // the attempt that counts: {pc, place on the server, alive: when something came last, packets, frames}; older ones were overtaken
let misses = 0; // attempts in a row without a picture
let retryTimer;
let trouble = "";

if (options.get("background")) document.body.style.background = options.get("background");
if (options.get("fit") === "cover") video.style.objectFit = "cover";

function say(text = "") {
  trouble = text;
  words.textContent = trouble || (video.muted && current ? "Click or press a key for sound." : "");
  words.hidden = !words.textContent || options.has("quiet");
}

function retry(why, { status, retryAfter = 0 } = {}) {
  give(current);
  current = null;
  video.style.visibility = "hidden"; // nothing is transparent, a video without a track is black
  say(why);
  const step = Math.min(misses++, (status ? BACKOFF_MS.length : SILENT_STEPS) - 1);
  clearTimeout(retryTimer);
  retryTimer = setTimeout(watch, Math.max(1000 * retryAfter, BACKOFF_MS[step] * (0.8 + 0.4 * Math.random())));
}

/** Ends an attempt and frees its place. */
function give(attempt) {
  attempt?.pc?.close();
  if (attempt?.place) hangUp(attempt.place);
}

async function watch() {
  const mine = { pc: null, place: "", alive: performance.now(), packets: 0, frames: 0 };
  current = mine;
  try {
    await connect(mine);
  } catch (error) {
    if (mine === current) retry(error.status === 404 ? "This session is not running. The picture comes when it starts again." : error.title ? error.text : "Waiting for the avatar…", error);
  }
}

async function connect(mine) {
  const servers = await iceServers().catch(() => []);
  if (mine !== current) return;
  const pc = new RTCPeerConnection({ iceServers: servers });
  mine.pc = pc;
  const incoming = new MediaStream();
  for (const kind of ["video", "audio"]) pc.addTransceiver(kind, { direction: "recvonly" });
  pc.addEventListener("track", ({ track }) => {
    incoming.addTrack(track);
    if (mine !== current || video.srcObject === incoming) return;
    video.srcObject = incoming;
    play();
  });
  pc.addEventListener("connectionstatechange", () => {
    if (mine === current && ["failed", "closed", "disconnected"].includes(pc.connectionState)) retry("Waiting for the avatar…");
  });
  await pc.setLocalDescription();
  await gathered(pc);
  if (mine !== current) return;
  const path = `/whep?sessionid=${encodeURIComponent(session)}`;
  const response = await request(path, { body: pc.localDescription.sdp, headers: { "Content-Type": "application/sdp" }, as: "response" });
  mine.place = response.headers.get("Location");
  if (mine !== current) return void give(mine); // overtaken: the place is not needed any more
  await pc.setRemoteDescription({ type: "answer", sdp: await response.text() });
  if (mine === current) say();
}

/** With sound where the browser allows it (OBS does), else silent until someone clicks or presses a key. */
async function play() {
  try {
    await video.play();
  } catch (error) {
    if (error.name !== "NotAllowedError" || video.muted) return;
    video.muted = true;
    video.play().catch(() => {});
  }
  say(trouble);
}

function unmute() {
  if (!video.muted) return;
  video.muted = false;
  play();
}
addEventListener("click", unmute);
addEventListener("keydown", unmute);

/** There is a picture: the video learns its size with the first one. */
function shown() {
  if (!video.videoWidth) return;
  misses = 0;
  video.style.visibility = "visible";
}
for (const event of ["loadeddata", "resize"]) video.addEventListener(event, shown);

/** Has it stalled? In a hidden tab the browser may stop decoding, so that there what arrives is enough. */
async function look() {
  const mine = current;
  if (!mine) return;
  const { packetsReceived: packets = 0, framesDecoded: frames = 0 } = await received(mine.pc);
  const moved = frames !== mine.frames || (document.hidden && packets !== mine.packets);
  Object.assign(mine, { packets, frames, ...(moved ? { alive: performance.now() } : {}) });
  if (mine === current && performance.now() - mine.alive > (frames ? STALL_MS : FIRST_MS)) retry("Waiting for the avatar…");
}

/** What has come of the picture so far; nothing of a connection that is not there yet, or closed. */
async function received(pc) {
  const report = await pc?.getStats().catch(() => null);
  return [...(report?.values() || [])].find(({ type, kind }) => type === "inbound-rtp" && kind === "video") || {};
}

addEventListener("pagehide", () => give(current));

readToken();
if (!session) say("This address needs ?sessionid=…; copy the link from the avatar's page.");
else if (!globalThis.RTCPeerConnection) say("This browser cannot show live video: WebRTC is missing or switched off in it.");
else {
  watch();
  setInterval(look, LOOK_MS);
}
pageStarted();
