// One recording: the browser's recorder, its pieces on their way to the server, small pictures for the server to look at, and how loud it is.

import { Trouble, hangUp, request } from "./link.js";

const KINDS = ["video/webm;codecs=vp8,opus", "video/webm", "video/mp4"]; // VP8 is what slow machines encode at this size
const BITS = 8_000_000; // a second: 60 MB a minute
const PIECE_MS = 1000;
const PICTURE_MS = 100; // from one look to the next, or as long as the server takes
const PICTURE_SIDE = 640;
const PICTURE_QUALITY = 0.85;
const LISTEN = 4096; // samples: 85 ms
const TRIES_MS = [500, 1000, 2000, 4000, 8000, 8000]; // the server forgets a recording after 60 s
const LOST = new Trouble("offline", "The server cannot be reached", "The recording could not be sent, so it is not kept. Check that the server is running and that this computer is online, then record again.");

const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** What this browser records. Raises Trouble. */
export function kindOf() {
  const kind = globalThis.MediaRecorder && KINDS.find((one) => MediaRecorder.isTypeSupported(one));
  if (!kind) throw new Trouble("browser", "This browser cannot record", "Open this page in a current Chrome, Edge, Firefox or Safari.");
  return kind;
}

/** Events: progress {detail: what the server says}, trouble {detail: Trouble}; the second ends it. */
export class Take extends EventTarget {
  constructor(video, { camera, microphone }) {
    super();
    this.video = video;
    this.tracks = [camera, microphone].filter(Boolean);
    this.sound = microphone;
    this.pieces = this.bytes = 0;
    this.over = false;
    this.sending = Promise.resolve();
  }

  /** Begins; the server's first answer. Raises Trouble. */
  async begin({ name, consent }) {
    const kind = kindOf();
    const { id, ...said } = await request("/studio/takes", { json: { name, consent, type: kind.split(";")[0], width: this.video.videoWidth, sound: Boolean(this.sound) } });
    this.path = `/studio/takes/${encodeURIComponent(id)}`;
    if (this.over) {
      hangUp(this.path);
      return said;
    }
    this.recorder = new MediaRecorder(new MediaStream(this.tracks), { mimeType: kind, videoBitsPerSecond: BITS });
    this.recorder.addEventListener("dataavailable", ({ data }) => this.keep(data));
    this.recorder.addEventListener("error", () => this.fail(new Trouble("browser", "The browser stopped recording", "Nothing is kept. Close other programs that use the camera, then record again.")));
    this.stopped = new Promise((resolve) => this.recorder.addEventListener("stop", resolve));
    this.recorder.start(PIECE_MS);
    this.began = performance.now();
    this.look();
    this.listen();
    return said;
  }

  get seconds() {
    return this.began ? (performance.now() - this.began) / 1000 : 0;
  }

  fail(trouble) {
    if (this.over) return;
    this.discard();
    this.dispatchEvent(new CustomEvent("trouble", { detail: trouble }));
  }

  // -- pieces ---------------------------------------------------------------------------------------------------------------

  keep(data) {
    if (!data.size || this.over) return;
    const number = this.pieces++;
    this.bytes += data.size;
    this.sending = this.sending.then(() => this.send(`${this.path}/piece?number=${number}`, { body: data })).catch((trouble) => this.fail(trouble));
  }

  /** Sends until it has arrived. Raises Trouble. */
  async send(path, options) {
    for (const pause of [...TRIES_MS, 0]) {
      if (this.over) return null;
      try {
        return await request(path, options);
      } catch (trouble) {
        if (!(trouble instanceof Trouble)) throw trouble;
        if (!["offline", "server"].includes(trouble.kind) || trouble.status === 404) throw trouble;
        if (!pause) throw LOST;
        await wait(pause);
      }
    }
    return null;
  }

  // -- what the server sees ----------------------------------------------------------------------------------------------------

  listen() {
    if (!this.sound) return;
    this.context = new AudioContext();
    this.context.resume().catch(() => {});
    this.analyser = this.context.createAnalyser();
    this.analyser.fftSize = LISTEN;
    this.context.createMediaStreamSource(new MediaStream([this.sound])).connect(this.analyser);
    this.samples = new Float32Array(LISTEN);
  }

  /** RMS of the last moment. */
  loud() {
    if (!this.analyser) return 0;
    this.analyser.getFloatTimeDomainData(this.samples);
    return Math.min(1, Math.sqrt(this.samples.reduce((sum, value) => sum + value * value, 0) / LISTEN));
  }

  /** Shows the server what is seen now, again and again; one picture at a time. */
  async look() {
    const canvas = document.createElement("canvas");
    const context = canvas.getContext("2d");
    while (!this.over && this.recorder.state === "recording") {
      const started = performance.now();
      const scale = Math.min(1, PICTURE_SIDE / Math.max(this.video.videoWidth, this.video.videoHeight, 1));
      canvas.width = Math.max(1, Math.round(this.video.videoWidth * scale));
      canvas.height = Math.max(1, Math.round(this.video.videoHeight * scale));
      context.drawImage(this.video, 0, 0, canvas.width, canvas.height);
      const picture = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", PICTURE_QUALITY));
      try {
        if (this.over || !picture) return;
        const said = await request(`${this.path}/picture?loud=${this.loud().toFixed(4)}`, { body: picture });
        if (!this.over) this.dispatchEvent(new CustomEvent("progress", { detail: said }));
      } catch (trouble) {
        if (!(trouble instanceof Trouble)) throw trouble;
        if (trouble.status === 404 || trouble.kind === "token") return this.fail(trouble);
        await wait(TRIES_MS[0]); // the pieces will tell whether the server is gone
      }
      await wait(Math.max(0, PICTURE_MS - (performance.now() - started)));
    }
  }

  // -- the end ----------------------------------------------------------------------------------------------------------------

  /** Stops and makes it a file; what the server says of it, null where it was discarded or failed meanwhile. Raises Trouble. */
  async finish() {
    if (this.recorder.state !== "inactive") this.recorder.stop();
    await this.stopped;
    await this.sending;
    const saved = await this.send(`${this.path}/finish`, { json: { pieces: this.pieces, bytes: this.bytes } });
    this.quiet();
    return saved;
  }

  /** Gives it up; the server keeps nothing. Also when the page goes away. */
  discard() {
    if (this.over) return;
    this.quiet();
    if (this.recorder && this.recorder.state !== "inactive") this.recorder.stop();
    if (this.path) hangUp(this.path);
  }

  quiet() {
    this.over = true;
    this.context?.close().catch(() => {});
  }
}
