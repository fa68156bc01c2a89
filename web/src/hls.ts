import Hls, { ErrorTypes, Events as HlsEvents, type ErrorData } from "hls.js";
import workerPath from "hls.js/dist/hls.worker.js?url";
import { Backoff } from "./backoff";
import { watchfulLoader } from "./loader";
import type { Events, Player } from "./player";
import { config, Pace, Patience, segmentLoadMs } from "./policy";

/** True when the browser has what hls.js needs (Media Source Extensions with H.264). */
export const hlsSupported = (): boolean => Hls.isSupported();

/**
 * Plays url with hls.js. Fatal errors are first met in place, a media error by resetting the decoder, a network
 * error by loading on; what that does not cure is reported as failed.
 */
export function hlsPlayer(video: HTMLVideoElement, url: string, events: Events): Player {
  const patience = new Patience();
  const paces = new Map<string, Pace>(); // by the kind of track
  const paceOf = (type: string) => paces.get(type) ?? paces.set(type, new Pace()).get(type)!;
  const hls = new Hls({ ...config(), workerPath, fLoader: watchfulLoader(patience, paceOf) });
  const limits = hls.config.fragLoadPolicy.default;
  const wait = new Backoff(250, 2000);
  let timer = 0;
  let attempts = 0; // at curing fatal errors, since a segment last played
  const newest = new Map<number, number>(); // by level, the highest media sequence number seen

  hls.on(HlsEvents.LEVEL_LOADED, (_, { details, level }) => {
    limits.maxLoadTimeMs = segmentLoadMs(details.targetduration);
    // Sequence numbers never fall while a publisher keeps its state. One that lost it starts a new stream under
    // the old name, which hls.js would take for the past and wait. One or two lower is a reordered answer.
    const known = newest.get(level) ?? 0;
    newest.set(level, Math.max(known, details.endSN));
    if (details.endSN + 2 < known) events.failed("The stream began anew.");
  });
  hls.on(HlsEvents.FRAG_LOADED, (_, { frag, networkDetails }) => {
    const { loading, total } = frag.stats;
    patience.loaded(loading.first - loading.start);
    limits.maxTimeToFirstByteMs = patience.firstByteMs;
    events.segment(finalURL(networkDetails) || frag.url, total);
  });
  hls.on(HlsEvents.FRAG_BUFFERED, () => {
    attempts = 0;
    wait.reset();
  });
  hls.on(HlsEvents.ERROR, (_, data) => {
    if (data.details === Hls.ErrorDetails.FRAG_LOAD_TIMEOUT) {
      patience.timedOut();
      limits.maxTimeToFirstByteMs = patience.firstByteMs;
    }
    const trouble = describe(data);
    events.error(detail(data), trouble, data.fatal);
    if (data.fatal) cure(data, trouble);
  });

  function cure(data: ErrorData, trouble: string): void {
    clearTimeout(timer);
    const curable = hls.levels.length > 0 && ++attempts <= 3;
    if (curable && data.type === ErrorTypes.MEDIA_ERROR) {
      hls.recoverMediaError();
    } else if (curable && data.type === ErrorTypes.NETWORK_ERROR) {
      timer = window.setTimeout(() => hls.startLoad(), wait.next());
    } else {
      events.failed(trouble);
    }
  }

  hls.attachMedia(video);
  hls.loadSource(url);
  return {
    kind: "hls.js",
    latency: () => (hls.latestLevelDetails?.live ? hls.latency : null),
    bitrate() {
      const level = hls.levels[Math.max(hls.currentLevel, 0)];
      return level ? level.realBitrate || level.bitrate : 0;
    },
    destroy() {
      clearTimeout(timer);
      hls.destroy();
    },
  };
}

// networkDetails is the XMLHttpRequest, or the Response where hls.js loads with fetch.
function finalURL(networkDetails: unknown): string {
  if (networkDetails instanceof XMLHttpRequest) return networkDetails.responseURL;
  if (networkDetails instanceof Response) return networkDetails.url;
  return "";
}

function detail({ details, response, frag, error }: ErrorData): string {
  const parts: string[] = [details];
  if (response?.code) parts.push(`status ${response.code}`);
  if (frag) parts.push(frag.relurl ?? frag.url);
  if (error?.message) parts.push(error.message);
  return parts.join(": ");
}

function describe({ type, details, response }: ErrorData): string {
  const code = response?.code ? ` (${response.code})` : "";
  if (/^(manifest|level|audioTrack|subtitleTrack)/.test(details)) return `The playlist cannot be loaded${code}.`;
  if (/^(frag|key)Load/.test(details)) return `A segment cannot be loaded${code}.`;
  if (details.startsWith("bufferStalled") || details === "bufferNudgeOnStall") return ""; // a symptom: data is missing
  if (type === ErrorTypes.MEDIA_ERROR) return "The picture cannot be decoded.";
  return type === ErrorTypes.NETWORK_ERROR ? `The stream cannot be loaded${code}.` : `The stream cannot be played (${details}).`;
}
