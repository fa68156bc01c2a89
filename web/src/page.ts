import { byteSize, phrases } from "./text";
import { Session, type Mood } from "./session";
import type { MakePlayer } from "./player";
import type { Stream } from "./streams";

const FACTS_MS = 500;

declare global {
  interface Window {
    /** Measurements for automated checks and the curious; see Snapshot. */
    dandelion?: { snapshot(): Snapshot };
  }
}

/** What window.dandelion.snapshot() gives. Seconds unless the name says otherwise; byte counts are of segments. */
export interface Snapshot {
  player: string;
  state: string;
  stream: string;
  origin: string;
  played_seconds: number;
  startup_ms: number | null;
  stalls: number;
  stall_seconds: number;
  latency: number | null;
  errors: string[];
  fatal_errors: string[];
  bytes_by_host: Record<string, number>;
  current_time: number;
  buffered_end: number;
  video_width: number;
  frames_decoded: number;
}

/** Brings the page to life. Note is one line to show for good, or "". Without makePlayer only the note shows. */
export function open(makePlayer: MakePlayer | null, note: string): void {
  const video = element("video", HTMLVideoElement);
  const unmute = element("unmute", HTMLButtonElement);
  const select = element("stream", HTMLSelectElement);
  showText("note", note);
  if (!makePlayer) {
    setState("bad", "Nothing can be played here.");
    return;
  }

  const wanted = new URLSearchParams(location.search).get("stream") ?? "";
  const session = new Session(video, makePlayer, { state: setState, streams: (all, current) => showStreams(select, all, current) }, wanted);

  select.addEventListener("change", () => {
    const url = new URL(location.href);
    url.searchParams.set("stream", select.value);
    history.replaceState(null, "", url);
    session.select(select.value);
  });
  unmute.addEventListener("click", () => {
    video.muted = false;
    if (video.volume === 0) video.volume = 1;
    video.focus();
  });
  const show = () => {
    video.hidden = session.idle;
    unmute.hidden = session.idle || !video.muted;
    showFacts(session);
  };
  video.addEventListener("volumechange", show);
  video.addEventListener("playing", show);
  window.setInterval(show, FACTS_MS);

  window.dandelion = { snapshot: () => snapshot(session) };
  void session.run();
}

function setState(mood: Mood, text: string): void {
  const state = element("state", HTMLElement);
  if (state.dataset.mood !== mood) state.dataset.mood = mood;
  showText("state", text);
}

function showStreams(select: HTMLSelectElement, all: Stream[], current: string): void {
  const names = all.map((stream) => stream.name);
  if (current !== "" && !names.includes(current)) names.unshift(current);
  if (names.join("\n") !== [...select.options].map((option) => option.value).join("\n")) {
    select.replaceChildren(...names.map((name) => new Option(name, name)));
  }
  select.value = current;
  element("streams", HTMLElement).hidden = names.length < 2;
  document.title = current === "" ? "Dandelion" : `${current} · Dandelion`;
}

function showFacts(session: Session): void {
  const { measured, player, video } = session;
  const measuresBytes = player?.kind === "hls.js" || measured.bytes.share("").boxBytes > 0;
  const facts = phrases({
    share: measuresBytes ? measured.bytes.share(session.origin) : null,
    startupMs: measured.startupMs,
    stalls: measured.meter.stalls,
    stallSeconds: measured.meter.stallSeconds,
    latency: player?.latency() ?? null,
    height: video.videoHeight,
    bitrate: player?.bitrate() ?? 0,
  });
  const list = element("facts", HTMLElement);
  while (list.children.length > facts.length) list.lastElementChild?.remove();
  while (list.children.length < facts.length) list.append(document.createElement("li"));
  facts.forEach((fact, i) => {
    const item = list.children[i];
    if (item && item.textContent !== fact) item.textContent = fact;
  });

  const hosts = Object.entries(measured.bytes.byHost());
  element("sources", HTMLElement).hidden = hosts.length === 0;
  const rows = hosts.map(([host, bytes]) => {
    const row = document.createElement("tr");
    const name = document.createElement("th");
    name.scope = "row";
    name.textContent = host === session.origin ? `${host} (the origin)` : host;
    const size = document.createElement("td");
    size.textContent = byteSize(bytes);
    row.append(name, size);
    return row;
  });
  if (element("sources", HTMLDetailsElement).open) element("hosts", HTMLElement).replaceChildren(...rows);
}

function snapshot(session: Session): Snapshot {
  const { measured, video, player } = session;
  const { buffered } = video;
  return {
    player: player?.kind ?? "",
    state: element("state", HTMLElement).textContent,
    stream: session.stream?.name ?? "",
    origin: session.origin,
    played_seconds: measured.meter.playedSeconds,
    startup_ms: measured.startupMs,
    stalls: measured.meter.stalls,
    stall_seconds: measured.meter.stallSeconds,
    latency: player?.latency() ?? null,
    errors: [...measured.errors],
    fatal_errors: [...measured.fatalErrors],
    bytes_by_host: measured.bytes.byHost(),
    current_time: video.currentTime,
    buffered_end: buffered.length > 0 ? buffered.end(buffered.length - 1) : 0,
    video_width: video.videoWidth,
    frames_decoded: video.getVideoPlaybackQuality?.().totalVideoFrames ?? 0,
  };
}

function showText(id: string, text: string): void {
  const target = element(id, HTMLElement);
  if (target.textContent !== text) target.textContent = text;
  if (id === "note") target.hidden = text === "";
}

function element<T extends HTMLElement>(id: string, type: new () => T): T {
  const found = document.getElementById(id);
  if (!(found instanceof type)) throw new Error(`the page has no ${type.name} #${id}`);
  return found;
}
