// The picture alone, for OBS's browser source or a big screen: watches a session over WHEP and comes back by itself.
// /view?sessionid=…  [&background=black|green|…] [&fit=cover] [&quiet] (no words on the picture while it waits)  [#token=…]

import { gathered, hangUp, iceServers, readToken, request } from "./link.js";

const options = new URLSearchParams(location.search);
const session = options.get("sessionid") || options.get("session") || "";
const video = document.getElementById("avatar");
const words = document.getElementById("words");
const BACKOFF_MS = [500, 1000, 2000, 5000];
const STALL_MS = 5000; // no new picture for so long: connect again

let pc;
let place = ""; // where this viewer is on the server
let attempt = 0;
let retryTimer;
let frames = 0;

if (options.get("background")) document.body.style.background = options.get("background");
if (options.get("fit") === "cover") video.style.objectFit = "cover";

function say(text = "") {
  words.textContent = text;
  words.hidden = !text || options.has("quiet");
}

function retry(why) {
  pc?.close();
  pc = null;
  if (place) hangUp(place);
  place = "";
  video.style.visibility = "hidden"; // nothing is transparent, a video without a track is black
  say(why);
  clearTimeout(retryTimer);
  retryTimer = setTimeout(watch, BACKOFF_MS[Math.min(attempt++, BACKOFF_MS.length - 1)] * (0.8 + 0.4 * Math.random()));
}

async function watch() {
  const mine = new RTCPeerConnection({ iceServers: await iceServers().catch(() => []) });
  pc = mine;
  const incoming = new MediaStream();
  for (const kind of ["video", "audio"]) mine.addTransceiver(kind, { direction: "recvonly" });
  mine.addEventListener("track", ({ track }) => {
    incoming.addTrack(track);
    video.srcObject = incoming;
    play();
  });
  mine.addEventListener("connectionstatechange", () => {
    if (mine === pc && ["failed", "closed", "disconnected"].includes(mine.connectionState)) retry("Waiting for the avatar…");
  });
  try {
    await mine.setLocalDescription();
    await gathered(mine);
    const path = `/whep?sessionid=${encodeURIComponent(session)}`;
    const response = await request(path, { body: mine.localDescription.sdp, headers: { "Content-Type": "application/sdp" }, as: "response" });
    place = response.headers.get("Location");
    await mine.setRemoteDescription({ type: "answer", sdp: await response.text() });
    say();
  } catch (trouble) {
    if (mine === pc) retry(trouble.status === 404 ? "This session is not running. The picture comes when it starts again." : trouble.text || "Waiting for the avatar…");
  }
}

/** With sound where the browser allows it (OBS does), else silent until someone clicks. */
function play() {
  video.play().catch(() => {
    video.muted = true;
    video.play().catch(() => {});
    addEventListener("click", () => (video.muted = false), { once: true });
  });
}

function count() {
  frames += 1;
  attempt = 0;
  video.style.visibility = "visible";
  video.requestVideoFrameCallback(count);
}
video.requestVideoFrameCallback(count);

let before = -1;
setInterval(() => {
  if (pc && frames === before) retry("Waiting for the avatar…");
  before = frames;
}, STALL_MS);

addEventListener("pagehide", () => place && hangUp(place));

readToken();
if (session) watch();
else say("This address needs ?sessionid=…; copy the link from the avatar's page.");
