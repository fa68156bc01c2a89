import { Backoff } from "./backoff";
import { ByteAccount, hostOf } from "./bytes";
import { Meter } from "./meter";
import type { MakePlayer, Player } from "./player";
import { choose, fetchStreams, isLive, type Stream } from "./streams";

const SAMPLE_MS = 100;
const NO_PROGRESS_MS = 15_000; // then the player is replaced, whatever it believes
const RETRY_MS: [first: number, most: number] = [500, 2500]; // a restarted publisher has its viewers back within three seconds
const REFRESH_MS = 15_000; // of the list of streams
const HAND_MS = 1000; // from the viewer's key or click to the seek that it causes, at most
const KEPT_ERRORS = 100;

/** What the session is doing, for the eye; the wording is in `text`. */
export type Mood = "quiet" | "good" | "bad";

/** Where the session tells what goes on. */
export interface View {
  state(mood: Mood, text: string): void;
  streams(all: Stream[], current: string): void;
}

/** What was measured since the stream was chosen. */
export class Measured {
  readonly bytes = new ByteAccount();
  readonly meter = new Meter();
  readonly errors: string[] = [];
  readonly fatalErrors: string[] = [];
  startupMs: number | null = null;
  startedAt = performance.now();
}

type Outcome = { why: "failed"; reason: string } | { why: "ended" } | { why: "switched" };

/** Finds a stream, plays it, and does so again whenever it ends or breaks. Never gives up, never hammers. */
export class Session {
  measured = new Measured();
  stream: Stream | null = null;
  player: Player | null = null;
  #finish: (outcome: Outcome) => void = () => {};
  #wake: () => void = () => {};
  #pausedByViewer = false;
  #blocked = false; // the browser wants a gesture before it plays
  #sought = false; // by the viewer, since the last sample
  #inputAt = Number.NEGATIVE_INFINITY;
  #outage = false; // the player broke and is not replaced yet
  #wasLive = false; // since this player began
  #trouble = ""; // the last, cleared by progress
  #progressAt = 0;
  #position = 0;
  readonly #again = new Backoff(...RETRY_MS);

  constructor(
    readonly video: HTMLVideoElement,
    readonly makePlayer: MakePlayer,
    readonly view: View,
    private wanted: string,
  ) {
    // A pause event is the viewer's, unless the element ran to its end or lost its source.
    video.addEventListener("pause", () => (this.#pausedByViewer = !video.ended && video.readyState > 0));
    video.addEventListener("play", () => (this.#pausedByViewer = this.#blocked = false));
    // Players seek too, over holes and to the live edge; a seek is the viewer's when a hand was at the controls.
    for (const type of ["pointerdown", "pointermove", "keydown"]) {
      video.addEventListener(type, (event) => {
        if (type !== "pointermove" || (event as PointerEvent).buttons !== 0) this.#inputAt = performance.now();
      });
    }
    video.addEventListener("seeking", () => (this.#sought ||= performance.now() - this.#inputAt < HAND_MS));
    video.addEventListener("ended", () => this.#finish({ why: "ended" }));
    window.addEventListener("online", () => this.#wake());
    document.addEventListener("visibilitychange", () => document.hidden || this.#wake());
    // Started is when the first picture is on the screen, a little after the element says that it plays.
    video.addEventListener("playing", () => {
      if ("requestVideoFrameCallback" in video) video.requestVideoFrameCallback(() => this.#started());
      else this.#started();
    });
    window.setInterval(() => this.#sample(), SAMPLE_MS);
    window.setInterval(() => void this.#refresh(), REFRESH_MS);
  }

  /** Plays another stream from now on. */
  select(name: string): void {
    if (name === this.wanted || name === this.stream?.name) return;
    this.wanted = name;
    this.#pausedByViewer = false;
    this.#finish({ why: "switched" });
    this.#wake();
  }

  /** Runs as long as the page is open. */
  async run(): Promise<never> {
    for (;;) {
      const stream = await this.#find();
      if (stream.name !== this.stream?.name) this.measured = new Measured();
      this.stream = stream;
      const outcome = await this.#play(stream);
      this.#outage = outcome.why === "failed";
      if (outcome.why === "failed") {
        this.view.state("bad", `${outcome.reason} Trying again…`);
        await this.#sleep(this.#again.next());
      } else if (outcome.why === "ended") {
        await this.#untilLive(stream);
      }
    }
  }

  async #find(): Promise<Stream> {
    const wait = new Backoff(...RETRY_MS);
    for (;;) {
      try {
        const streams = await fetchStreams();
        const stream = choose(streams, this.wanted);
        this.view.streams(streams, stream?.name ?? this.wanted);
        if (stream) return stream;
        const what = this.wanted === "" ? "There is no stream yet." : `There is no stream “${this.wanted}” yet.`;
        this.view.state("quiet", `${what} It starts here by itself as soon as there is one.`);
      } catch (error) {
        this.view.state("bad", `${(error as Error).message} Trying again…`);
      }
      await this.#sleep(wait.next());
    }
  }

  async #play(stream: Stream): Promise<Outcome> {
    this.#trouble = "";
    this.#wasLive = false;
    this.#progressAt = performance.now();
    this.view.state("quiet", stream.problem === "" ? "Starting…" : `Starting… The publisher reports: ${stream.problem}`);
    const { measured } = this;
    const done = new Promise<Outcome>((resolve) => (this.#finish = resolve));
    this.player = this.makePlayer(this.video, stream.url, {
      segment: (url, bytes) => measured.bytes.add(url, bytes),
      error: (detail, trouble, fatal) => {
        this.#trouble = trouble || this.#trouble;
        keep(measured.errors, detail);
        if (fatal) keep(measured.fatalErrors, detail);
      },
      failed: (reason) => this.#finish({ why: "failed", reason }),
    });
    measured.meter.restart();
    void this.#start();
    const outcome = await done;
    this.#finish = () => {};
    this.player.destroy();
    this.player = null;
    return outcome;
  }

  /** Begins to play; where sound needs a gesture first, without sound. */
  async #start(): Promise<void> {
    const { video } = this;
    try {
      if (!this.#pausedByViewer) await video.play();
    } catch (error) {
      if ((error as DOMException).name !== "NotAllowedError") return; // replaced before it could start
      if (video.muted) {
        this.#blocked = true;
        return;
      }
      video.muted = true;
      await this.#start();
    }
  }

  /** Returns when the ended stream goes on, is no longer offered, or another one is wanted. */
  async #untilLive(stream: Stream): Promise<void> {
    this.view.state("quiet", "The stream has ended. If it comes back, it plays here.");
    const wait = new Backoff(2000, 15_000);
    do {
      await this.#sleep(wait.next());
      const streams = await this.#refresh();
      const stays = this.wanted === "" || this.wanted === stream.name;
      if (!stays || (streams && !choose(streams, stream.name))) return;
    } while (!(await isLive(stream.url)));
  }

  /** Shows which streams there are now; null when the publisher does not say. */
  async #refresh(): Promise<Stream[] | null> {
    if (document.hidden || !this.stream) return null;
    try {
      const streams = await fetchStreams();
      this.view.streams(streams, this.stream.name);
      return streams;
    } catch {
      return null; // what plays goes on; what does not play says so itself
    }
  }

  #started(): void {
    if (this.player) this.measured.startupMs ??= performance.now() - this.measured.startedAt;
  }

  #sample(): void {
    const { video, measured, player } = this;
    const now = performance.now();
    // Between a broken player and the next, the element knows no position; to the viewer the picture stands still.
    const position = this.#outage && !player ? this.#position : video.currentTime;
    measured.meter.take({
      now,
      position,
      paused: this.#pausedByViewer || this.#blocked || !(player || this.#outage),
      sought: this.#sought,
      ended: video.ended,
    });
    this.#sought &&= video.seeking;
    if (!player) return;

    const moved = position !== this.#position && video.readyState >= HTMLMediaElement.HAVE_CURRENT_DATA && !video.seeking;
    this.#position = position;
    if (this.#blocked) {
      this.#progressAt = now;
      measured.startedAt = now;
      this.view.state("quiet", "Press play to start.");
    } else if (this.#pausedByViewer) {
      this.#progressAt = now;
      this.view.state("quiet", "Paused");
    } else if (moved && position > 0) {
      this.#progressAt = now;
      this.#started(); // pictures are not reported to hidden pages
      this.#again.reset();
      this.#trouble = "";
      const live = player.latency() !== null || !Number.isFinite(video.duration);
      this.#wasLive ||= live;
      this.view.state("good", live ? "Live" : this.#wasLive ? "The stream has ended. This is the rest of it." : "Playing a recording");
    } else if (measured.meter.stalled) {
      this.view.state("bad", this.#trouble === "" ? "Waiting for data…" : `Waiting for data. ${this.#trouble}`);
    }
    if (now - this.#progressAt > NO_PROGRESS_MS) {
      this.#finish({ why: "failed", reason: this.#trouble || "Playback does not move." });
    }
  }

  #sleep(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  /** True while there is nothing that could play. */
  get idle(): boolean {
    return this.player === null && !this.#outage;
  }

  /** The host whose bytes are the origin's. */
  get origin(): string {
    return this.stream ? hostOf(this.stream.url) : location.host;
  }
}

function keep(list: string[], entry: string): void {
  list.push(entry);
  if (list.length > KEPT_ERRORS) list.shift();
}
