// How late the avatar is, measured where it is seen: from the instant the camera took a picture to the instant the avatar's
// picture with that motion is on the screen. The server sends (outgoing RTP time, capture time, sending time) on its own
// clock; requestVideoFrameCallback says when the frame with that RTP time is displayed; pings say how the clocks differ.

const MEMORY = 600; // frames waiting for their pair, or pairs for their frame
const WINDOW_MS = 5000; // what a median is taken over
const HISTORY = 60; // seconds in the chart
const CLOCK_SAMPLES = 20;

export const quantile = (values, q) => {
  if (!values.length) return NaN;
  const ordered = [...values].sort((a, b) => a - b);
  return ordered[Math.min(ordered.length - 1, Math.floor(ordered.length * q))];
};

const remember = (map, key, value) => {
  map.set(key, value);
  if (map.size > MEMORY) map.delete(map.keys().next().value);
};

export class Meter {
  constructor(video) {
    this.video = video;
    this.report = () => {};
    this.sees = "requestVideoFrameCallback" in video; // else the browser does not tell when which frame is displayed
    this.reset();
    if (this.sees) this.watch();
    else video.addEventListener("timeupdate", () => (this.count += 1)); // enough to know that there is a picture
  }

  reset() {
    this.times = []; // when frames were displayed
    this.history = []; // {fps, p50, p95}
    this.count = 0; // frames displayed since the start
    this.meet();
  }

  /** A connection begins, perhaps to a server that was started anew: its clock and its RTP times have nothing to do with the last one's. */
  meet() {
    this.clocks = []; // [round trip ms, server ms - page ms]
    this.offset = undefined; // server ms - page ms
    this.frames = new Map(); // rtp -> {displayed, received}, not yet matched
    this.pairs = new Map(); // rtp -> [capture, sent], not yet matched
    this.samples = []; // {at, total, network, display}
    this.unsent = [];
  }

  watch() {
    this.video.requestVideoFrameCallback((now, frame) => {
      this.watch();
      const displayed = frame.expectedDisplayTime;
      this.count += 1;
      this.times.push(displayed);
      if (frame.rtpTimestamp === undefined) return;
      const seen = { displayed, received: frame.receiveTime ?? displayed };
      const pair = this.pairs.get(frame.rtpTimestamp);
      if (pair) this.match(frame.rtpTimestamp, pair, seen);
      else remember(this.frames, frame.rtpTimestamp, seen);
    });
  }

  /** A pong: the clock difference is taken from the quickest of the last round trips. */
  pong({ t, server_time: serverTime }) {
    const now = performance.now();
    this.clocks.push([now - t, serverTime * 1000 - (now + t) / 2]);
    if (this.clocks.length > CLOCK_SAMPLES) this.clocks.shift();
    this.offset = this.clocks.reduce((best, one) => (one[0] < best[0] ? one : best))[1];
  }

  /** Pairs of the data channel: [rtp, server capture s, server sent s]. */
  pair(pairs) {
    for (const [rtp, capture, sent] of pairs) {
      const seen = this.frames.get(rtp);
      if (seen) this.match(rtp, [capture, sent], seen);
      else remember(this.pairs, rtp, [capture, sent]);
    }
  }

  match(rtp, [capture, sent], { displayed, received }) {
    this.frames.delete(rtp);
    this.pairs.delete(rtp);
    if (this.offset === undefined || !capture) return;
    const here = (serverSeconds) => serverSeconds * 1000 - this.offset;
    const total = displayed - here(capture);
    this.samples.push({ at: displayed, total, network: received - here(sent), display: displayed - received });
    this.unsent.push([rtp, Math.round(total * 10) / 10]);
  }

  /** Once a second: forgets what is old, keeps the chart's history, hands the samples to `report`. */
  tick() {
    const now = performance.now();
    this.samples = this.samples.filter(({ at }) => now - at < WINDOW_MS);
    this.times = this.times.filter((at) => now - at < 2000);
    if (this.unsent.length) this.report(this.unsent.splice(0));
    const totals = this.samples.map(({ total }) => total);
    const part = (name) => quantile(this.samples.map((one) => one[name]), 0.5);
    const reading = {
      fps: this.sees ? this.times.length / 2 : NaN,
      p50: quantile(totals, 0.5),
      p95: quantile(totals, 0.95),
      network: Math.max(0, part("network")),
      display: Math.max(0, part("display")),
    };
    this.history.push(reading);
    if (this.history.length > HISTORY) this.history.shift();
    return reading;
  }
}

const STAGES = { uplink: "Camera to server", wait: "Tracking", track: "Tracking", step: "Generating", compose: "Composing", handoff: "Composing", pace: "Encoding and pacing" };
const ORDER = ["Camera to server", "Tracking", "Generating", "Composing", "Encoding and pacing", "Server to here", "Buffer and display"];
const COLOURS = ["--part-3", "--part-5", "--part-1", "--part-2", "--part-4", "--part-6", "--part-7"];

/** The parts of the delay in the order a frame meets them: [{name, ms, colour}], from the server's stages and the page's own. */
export function parts(stages, reading) {
  const sums = new Map(ORDER.map((name) => [name, 0]));
  for (const [stage, times] of Object.entries(stages || {})) {
    const name = STAGES[stage];
    if (name && Number.isFinite(times.p50)) sums.set(name, sums.get(name) + Math.max(0, times.p50));
  }
  sums.set("Server to here", reading.network || 0);
  sums.set("Buffer and display", reading.display || 0);
  return ORDER.map((name, index) => ({ name, ms: sums.get(name), colour: `var(${COLOURS[index]})` })).filter(({ ms }) => ms >= 0.05);
}

/** Draws the last minute: the band from median to p95 of the delay (left axis) and frames a second (right axis). */
export function drawChart(canvas, history) {
  const { width, height } = canvas.getBoundingClientRect();
  if (!width) return;
  const scale = devicePixelRatio || 1;
  canvas.width = width * scale;
  canvas.height = height * scale;
  const pen = canvas.getContext("2d");
  pen.scale(scale, scale);
  const style = getComputedStyle(canvas);
  const colour = (name) => style.getPropertyValue(name).trim();
  const box = { left: 42, right: width - 34, top: 18, bottom: height - 8 };
  const known = history.filter(({ p50 }) => Number.isFinite(p50));
  const top = Math.max(100, Math.ceil(Math.max(0, ...known.map(({ p95 }) => p95)) / 50) * 50);
  const x = (index) => box.left + ((box.right - box.left) * (HISTORY - history.length + index)) / (HISTORY - 1);
  const y = (value, most) => box.bottom - ((box.bottom - box.top) * Math.min(value, most)) / most;
  pen.font = `11px ${style.fontFamily}`;
  pen.textBaseline = "middle";
  pen.lineWidth = 1;
  for (const share of [0, 0.5, 1]) {
    const level = Math.round(y(share, 1)) + 0.5;
    pen.strokeStyle = colour("--line");
    pen.beginPath();
    pen.moveTo(box.left, level);
    pen.lineTo(box.right, level);
    pen.stroke();
    pen.fillStyle = colour("--muted");
    pen.textAlign = "right";
    pen.fillText(Math.round(top * share), box.left - 8, level);
    pen.textAlign = "left";
    pen.fillText(Math.round(60 * share), box.right + 8, level);
  }
  pen.textAlign = "left";
  pen.fillStyle = colour("--part-1");
  pen.fillText(width < 420 ? "delay, ms" : "delay in ms, median to 95 of 100", box.left, 6);
  pen.textAlign = "right";
  pen.fillStyle = colour("--part-2");
  pen.fillText("frames a second", box.right, 6);
  const line = (pick, most, paint) => {
    pen.strokeStyle = paint;
    pen.lineWidth = 2;
    pen.lineJoin = "round";
    pen.beginPath();
    let down = false;
    history.forEach((one, index) => {
      if (!Number.isFinite(pick(one))) return void (down = false);
      if (down) pen.lineTo(x(index), y(pick(one), most));
      else pen.moveTo(x(index), y(pick(one), most));
      down = true;
    });
    pen.stroke();
  };
  pen.fillStyle = colour("--part-1");
  pen.globalAlpha = 0.18;
  history.forEach((one, index) => {
    const next = history[index + 1];
    if (!next || !Number.isFinite(one.p95) || !Number.isFinite(next.p95)) return;
    pen.beginPath();
    pen.moveTo(x(index), y(one.p50, top));
    pen.lineTo(x(index), y(one.p95, top));
    pen.lineTo(x(index + 1), y(next.p95, top));
    pen.lineTo(x(index + 1), y(next.p50, top));
    pen.fill();
  });
  pen.globalAlpha = 1;
  line(({ fps }) => fps, 60, colour("--part-2"));
  line(({ p50 }) => p50, top, colour("--part-1"));
}
