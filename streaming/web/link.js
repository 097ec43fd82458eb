// The way to the server: requests, the peer connection, the data channel, and getting all of it back after a loss.
// Every failure leaves here as a Trouble: a title and a sentence a person can act on.

import { tabKeeps } from "./keep.js";

export class Trouble extends Error {
  /** kind: camera | microphone | token | full | portrait | offline | server | insecure | browser | refused */
  constructor(kind, title, text, extra = {}) {
    super(text);
    Object.assign(this, { kind, title, text, ...extra });
  }
}

/** A token in the address (#token=…) is kept for this tab and taken out of the address bar. */
export function readToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    setToken(given);
    history.replaceState(null, "", location.pathname + location.search);
  }
  return tabKeeps.get("token", "");
}

export const setToken = (token) => tabKeeps.set("token", token);

const authorised = (headers = {}) => {
  const token = readToken();
  return token ? { ...headers, Authorization: `Bearer ${token}` } : headers;
};

const MEGABYTE = 1024 * 1024;

function refusal(status, said, retryAfter) {
  const again = retryAfter > 1 ? ` Try again in ${retryAfter} seconds.` : " Try again in a moment.";
  const table = {
    401: ["token", "An access token is needed", readToken() ? "The server did not accept this access token. Ask its operator for the present one." : "This server asks for an access token. Paste the one that its operator gave you."],
    403: ["refused", "This address is not allowed", said || "The server does not accept pages from this address. Open the address that it printed when it started."],
    404: ["server", "That is not there any more", said || "The session has ended on the server. Press Start to begin a new one."],
    413: ["portrait", "The file is too large", said || "The file is larger than this server accepts. Choose a smaller one."],
    429: ["full", "Too many requests", `The server asks you to slow down.${again}`],
    503: ["full", "The server is full", said || `All its places are taken.${again}`],
  };
  const [kind, title, text] = table[status] || (status < 500 ? ["refused", "The server could not do that", said] : ["server", "The server had a problem", said]);
  return new Trouble(kind, title, text || "Try again. If it stays like this, the server's log says more.", { status, retryAfter });
}

/** A request; JSON answers are parsed, other bodies come back as they are. Raises Trouble. */
export async function request(path, { method = "GET", json, body, headers = {}, as = "json" } = {}) {
  let response;
  try {
    response = await fetch(path, {
      method: json || body ? "POST" : method,
      headers: authorised(json ? { "Content-Type": "application/json", ...headers } : headers),
      body: json ? JSON.stringify(json) : body,
    });
  } catch {
    throw new Trouble("offline", "The server cannot be reached", "Check that it is running and that this computer is online, then try again.");
  }
  const isJson = (response.headers.get("Content-Type") || "").includes("json");
  if (!response.ok) {
    const answer = isJson ? await response.json().catch(() => ({})) : {};
    throw refusal(response.status, answer.error || answer.msg || "", Number(response.headers.get("Retry-After")) || 0);
  }
  if (as === "blob") return response.blob();
  if (as === "response") return response;
  const answer = await response.json();
  if (answer && answer.code !== undefined && answer.code !== 0) throw new Trouble("refused", "The server could not do that", answer.msg || "Try again.");
  return answer && answer.code === 0 ? answer.data : answer;
}

/** Sends a file as a form. Raises Trouble. */
export function upload(path, fields) {
  const body = new FormData();
  for (const [name, value] of Object.entries(fields)) body.append(name, value);
  return request(path, { body });
}

const DEVICE_SENTENCES = {
  NotAllowedError: (what) => [`The ${what} is not allowed`, `Allow the ${what} for this page: press the lock or camera sign beside the address, choose Allow, then try again. If it is allowed there, check your system's privacy settings.`],
  NotFoundError: (what) => [`There is no ${what}`, `Plug a ${what} in, or choose another way to move the portrait.`],
  NotReadableError: (what) => [`The ${what} is busy`, `Another program is using the ${what}, or the system withholds it. Close the other program, then try again.`],
  SecurityError: (what) => [`The ${what} is not allowed`, `This browser keeps pages from using the ${what}. Check its settings, then try again.`],
};
DEVICE_SENTENCES.AbortError = DEVICE_SENTENCES.NotReadableError;

function deviceTrouble(what, error) {
  const [title, text] = (DEVICE_SENTENCES[error.name] || DEVICE_SENTENCES.NotReadableError)(what);
  return new Trouble(what, title, text, { reason: error.name });
}

const VOICE = { echoCancellation: true, noiseSuppression: true, autoGainControl: true };
const WANTED = {
  camera: (id) => ({ video: { width: { ideal: 640 }, height: { ideal: 480 }, frameRate: { ideal: 30 }, ...(id ? { deviceId: { exact: id } } : { facingMode: "user" }) } }),
  microphone: (id) => ({ audio: { channelCount: { ideal: 1 }, ...VOICE, ...(id ? { deviceId: { exact: id } } : {}) } }),
};

/** One track of a camera or a microphone. Raises Trouble. */
export async function openDevice(what, id = "") {
  if (!navigator.mediaDevices?.getUserMedia) {
    throw new Trouble("insecure", "The browser keeps the camera closed here", "Browsers only open cameras and microphones on https:// or on localhost. Open the page that way, or choose Text or Audio file.");
  }
  try {
    const stream = await navigator.mediaDevices.getUserMedia(WANTED[what](id));
    return stream.getTracks()[0];
  } catch (error) {
    if (id && (error.name === "OverconstrainedError" || error.name === "NotFoundError")) return openDevice(what);
    throw deviceTrouble(what, error);
  }
}

const GATHERING_LIMIT_MS = 1500;

/** Sound and picture in streams of their own. In one stream the browser holds every picture back until the sound's (larger)
 * buffer has played, even while that is silence; `align` does it only where there is something to hear. */
const apart = (sdp) => sdp.split(/(?=^m=)/m).map((section) => (section.startsWith("m=audio") ? section.replace(/\bmsid:\S+/g, "msid:voice") : section)).join("");

/** Resolves when the candidates are gathered, or after a limit: a STUN server that does not answer must not hold the start. */
export function gathered(pc) {
  if (pc.iceGatheringState === "complete") return Promise.resolve();
  return new Promise((resolve) => {
    setTimeout(resolve, GATHERING_LIMIT_MS);
    pc.addEventListener("icegatheringstatechange", () => pc.iceGatheringState === "complete" && resolve());
  });
}

const PING_MS = 1000;
const SILENCE_MS = 5000; // no pong for so long: the connection is lost
const CONNECT_MS = 12000;
const BACKOFF_MS = [400, 1000, 2000, 4000, 8000, 15000];
const MOST_WAIT_MS = 500; // what the picture may wait for the sound
const MAX_UPLINK_BITS = 2_500_000;
const SEAT_MS = 8000; // what a new offer waits for the seat of the one before

/** One session. Events: state {state, trouble?, wait?}, message, stream, open. States: connecting, live, lost, ended, failed. */
export class Link extends EventTarget {
  constructor({ describe }) {
    super();
    this.describe = describe; // () -> the fields of the offer besides the SDP
    this.tracks = { camera: null, microphone: null };
    this.sessionid = "";
    this.resume = ""; // the server's token for getting this session back
    this.state = "ended";
    this.attempt = 0;
    this.turn = 0; // the newest one counts; whoever holds an older one was stopped or overtaken
    this.trying = 0; // the turn that `tryNow` is busy with
    this.leaving = Promise.resolve(); // settles when no seat is held or asked for any more
  }

  emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  become(state, extra = {}) {
    this.state = state;
    this.emit("state", { state, ...extra });
  }

  /** Opens the session; raises Trouble where the first attempt fails. */
  async start() {
    this.attempt = 0;
    this.free();
    this.wanted = true;
    this.become("connecting");
    const connecting = this.connect();
    const { turn } = this;
    try {
      await connecting;
    } catch (trouble) {
      if (turn !== this.turn) return;
      this.wanted = false;
      this.drop();
      this.free();
      this.become("failed", { trouble });
    }
  }

  stop() {
    this.wanted = false;
    clearTimeout(this.retryTimer);
    this.drop();
    this.free();
    this.become("ended");
  }

  /** Gives the seat back, if there is one. */
  free() {
    if (this.sessionid) this.leaving = Promise.allSettled([this.leaving, hangUp(`/offer/${this.sessionid}`)]);
    this.sessionid = this.resume = "";
  }

  /** Puts a track (or nothing) on its way, also while live. */
  setTrack(what, track) {
    this.tracks[what] = track;
    if (track && what === "camera") track.contentHint = "motion";
    return this.senders?.[what]?.replaceTrack(track);
  }

  send(message) {
    if (this.channel?.readyState !== "open") return false;
    this.channel.send(JSON.stringify(message));
    return true;
  }

  async connect() {
    this.drop();
    const { turn } = this;
    if (!globalThis.RTCPeerConnection) throw new Trouble("browser", "This browser cannot do live video", "WebRTC is missing or switched off in it. Allow it, or open this page in a current Chrome, Edge, Firefox or Safari.");
    const servers = await iceServers();
    if (turn !== this.turn) return;
    const pc = new RTCPeerConnection({ iceServers: servers });
    this.pc = pc;
    const outgoing = new MediaStream();
    const add = (kind, track, encodings) => pc.addTransceiver(track || kind, { direction: "sendrecv", streams: [outgoing], sendEncodings: encodings }).sender;
    this.senders = {
      camera: add("video", this.tracks.camera, [{ maxBitrate: MAX_UPLINK_BITS, maxFramerate: 30 }]),
      microphone: add("audio", this.tracks.microphone),
    };
    const incoming = new MediaStream();
    pc.addEventListener("track", ({ track }) => {
      incoming.addTrack(track);
      this.emit("stream", incoming);
    });
    const up = this.listen(pc, pc.createDataChannel("avatar"));
    up.catch(() => {}); // it is awaited below, if the offer gets that far
    await pc.setLocalDescription();
    await gathered(pc);
    // A server with one place is full while it still holds ours; one that does not answer is asked anyway.
    await Promise.race([this.leaving, new Promise((resolve) => setTimeout(resolve, SEAT_MS))]);
    if (turn !== this.turn) return;
    const asking = this.ask(pc.localDescription, turn);
    this.leaving = Promise.allSettled([this.leaving, asking]);
    const answer = await asking;
    if (!answer) return;
    await pc.setRemoteDescription({ sdp: apart(answer.sdp), type: answer.type });
    await up;
    if (turn !== this.turn) return;
    this.attempt = 0;
    this.become("live");
  }

  /** Sends the offer. An answer that comes after its turn gives its seat back and is null. */
  async ask({ sdp, type }, turn) {
    const answer = await request("/offer", { json: { sdp, type, ...this.describe(), ...(this.resume ? { resume: this.resume } : {}) } });
    if (turn !== this.turn) {
      await hangUp(`/offer/${answer.sessionid}`);
      return null;
    }
    this.sessionid = answer.sessionid;
    this.resume = answer.resume || answer.sessionid;
    return answer;
  }

  /** Follows the connection's life; resolves when the data channel is open. */
  listen(pc, channel) {
    this.channel = channel;
    channel.addEventListener("message", ({ data }) => this.hear(JSON.parse(data)));
    channel.addEventListener("close", () => pc === this.pc && this.lose());
    pc.addEventListener("connectionstatechange", () => pc === this.pc && ["failed", "closed"].includes(pc.connectionState) && this.lose());
    return new Promise((resolve, reject) => {
      const limit = setTimeout(
        () => reject(new Trouble("offline", "No connection came about", "The server answers, but no media gets through. A firewall may be in the way; the operator can name a TURN server.")),
        CONNECT_MS,
      );
      this.abandon = () => {
        clearTimeout(limit);
        reject(new Trouble("offline", "The connection was given up", "Press Start to try again."));
      };
      channel.addEventListener("open", () => {
        clearTimeout(limit);
        this.beat(pc);
        this.emit("open");
        resolve();
      });
    });
  }

  beat(pc) {
    this.heard = performance.now();
    this.pulse = setInterval(() => {
      if (pc !== this.pc) return;
      if (performance.now() - this.heard > SILENCE_MS) this.lose();
      else this.send({ type: "ping", t: performance.now() });
    }, PING_MS);
    this.send({ type: "ping", t: performance.now() });
  }

  hear(message) {
    this.heard = performance.now();
    this.emit("message", message);
  }

  lose() {
    if (!this.wanted || this.state === "lost" || this.state === "connecting") return;
    this.drop();
    this.retry();
  }

  retry(after = 0) {
    const base = BACKOFF_MS[Math.min(this.attempt++, BACKOFF_MS.length - 1)];
    const wait = Math.max(after, base * (0.8 + 0.4 * Math.random()));
    this.become("lost", { wait });
    this.retryTimer = setTimeout(() => this.tryNow(), wait);
  }

  /** Tries to get the session back at once. */
  async tryNow() {
    if (this.state !== "lost" || this.trying === this.turn) return;
    clearTimeout(this.retryTimer);
    const connecting = this.connect();
    const turn = (this.trying = this.turn);
    try {
      await connecting;
    } catch (trouble) {
      if (turn !== this.turn) return;
      this.drop();
      if (trouble.status === 404) this.resume = "";
      if (["token", "refused", "portrait"].includes(trouble.kind)) {
        this.wanted = false;
        this.become("failed", { trouble });
      } else this.retry((trouble.retryAfter || 0) * 1000);
    } finally {
      if (this.trying === turn) this.trying = 0;
    }
  }

  /** Lip sync where there is something to hear: the picture waits as long as the sound does. Without sound it waits for nothing. */
  async align(audible) {
    const { pc } = this;
    if (pc?.connectionState !== "connected") return;
    const receivers = Object.fromEntries(pc.getReceivers().map((receiver) => [receiver.track.kind, receiver]));
    if (!receivers.audio || !("jitterBufferTarget" in receivers.video)) return;
    const report = [...(await receivers.audio.getStats()).values()].find(({ type }) => type === "inbound-rtp");
    const { jitterBufferDelay: delay = 0, jitterBufferEmittedCount: count = 0 } = report || {};
    const [delayBefore, countBefore] = this.waited || [0, 0];
    this.waited = [delay, count];
    if (!audible || count <= countBefore) receivers.video.jitterBufferTarget = null;
    else receivers.video.jitterBufferTarget = Math.min(MOST_WAIT_MS, Math.round((1000 * (delay - delayBefore)) / (count - countBefore) / 10) * 10);
  }

  /** Ends whatever is open or under way here; the seat on the server stays. */
  drop() {
    this.turn += 1;
    clearInterval(this.pulse);
    this.waited = null;
    const { pc } = this;
    this.abandon?.();
    this.pc = this.channel = this.senders = null;
    pc?.close();
  }
}

/** Frees a seat at once: a connection's own goodbye can get lost, and a page that closes has no time to see whether it did. */
export function hangUp(path) {
  return fetch(path, { method: "DELETE", headers: authorised(), keepalive: true }).catch(() => {});
}

/** The STUN and TURN servers that the operator named, if any; a server without that answer has none. */
let known;
export async function iceServers() {
  known ??= (await request("/healthz")).ice_servers || [];
  return known;
}

/** Whether the server asks for a token: who has none is not told its ICE servers. A tab may hold one that nobody needs any more. */
export async function asksForToken() {
  const { ice_servers: told } = await fetch("/healthz").then((response) => response.json()).catch(() => ({}));
  return !told;
}

export const megabytes = (bytes) => `${(bytes / MEGABYTE).toFixed(1)} MB`;
