// pkg/watch/policy.go has the same figures, and a test there that keeps them the same.
import type { Fragment, HlsConfig, LoaderResponse, LoadPolicy, RetryConfig } from "hls.js";

const FIRST_BYTE_MS = 1000;
const LONGEST_FIRST_BYTE_MS = 8000;
// The front sends a viewer's third attempt to the origin. One who still sees no byte has a slow line himself.
const IMPATIENT_ATTEMPTS = 3;
const SILENCE_MS = 1000;
const PACE_AFTER_MS = 1000;
const SHORTEST_MS = 1000;
const PACE_GIVE_UPS = 2;
const PACE_REST_MS = 30_000;

/**
 * How long to wait for the first byte of a segment before the front is asked again, which then names another
 * box. One second; longer only for viewers whose own line has shown that it needs it, lest they never load a
 * segment at all.
 */
export class Patience {
  #timeouts = 0;
  #usual = FIRST_BYTE_MS;

  /** The limit for the next request, in milliseconds. */
  get firstByteMs(): number {
    return this.#patient(this.#usual);
  }

  /** How long no further byte of the next answer may come, in milliseconds. */
  get silenceMs(): number {
    return this.#patient(SILENCE_MS);
  }

  #patient(limit: number): number {
    const doublings = Math.max(0, this.#timeouts - IMPATIENT_ATTEMPTS + 1);
    return Math.min(limit * 2 ** doublings, LONGEST_FIRST_BYTE_MS);
  }

  /** A request got no answer in time, or not all of it. */
  timedOut(): void {
    this.#timeouts++;
  }

  /** A segment came, its first byte after ms milliseconds. */
  loaded(ms: number): void {
    this.#timeouts = 0;
    this.#usual = Math.min(Math.max(FIRST_BYTE_MS, 2 * ms), LONGEST_FIRST_BYTE_MS);
  }
}

/**
 * Which segments may be given up because they come slower than they play: each once, for when the next host is as
 * slow, it is the viewer's own line. After two in a row, with none between that came in half the time it plays, none
 * for half a minute, or until one comes so quickly. Of one kind of track: audio is quick where video is slow.
 */
export class Pace {
  #slow = 0;
  #restsUntil = 0;
  #last: Segment | null = null;

  /** Whether a segment may be given up now, in milliseconds. */
  judges(segment: Segment, now: number): boolean {
    return segment !== this.#last && now >= this.#restsUntil;
  }

  gaveUp(segment: Segment, now: number): void {
    this.#last = segment;
    if (++this.#slow < PACE_GIVE_UPS) return;
    this.#slow = 0;
    this.#restsUntil = now + PACE_REST_MS;
  }

  /** A segment came whole, tookMs after its first byte. */
  loaded(tookMs: number, playsMs: number): void {
    if (tookMs > Math.max(playsMs, SHORTEST_MS) / 2) return;
    this.#slow = 0;
    this.#restsUntil = 0;
  }
}

/** A segment's sequence number. */
export type Segment = Fragment["sn"];

/** How far an answer is. */
export interface Progress {
  sinceFirstMs: number; // the first byte
  sinceLastMs: number; // the last
  loaded: number; // bytes
  total: number; // 0: not known
}

/**
 * Whether to ask again for what comes too slowly: "silent" when no further byte came for silenceMs, "slow" when at
 * the mean rate all would take longer than playsMs, and what is missing longer than half of that (0: at any rate).
 */
export function verdict({ sinceFirstMs, sinceLastMs, loaded, total }: Progress, silenceMs: number, playsMs: number): "silent" | "slow" | null {
  if (total > 0 && loaded >= total) return null;
  if (sinceLastMs >= silenceMs) return "silent";
  if (playsMs <= 0 || sinceFirstMs < PACE_AFTER_MS || total <= 0 || loaded <= 0) return null;
  const plays = Math.max(playsMs, SHORTEST_MS);
  const left = (sinceFirstMs * (total - loaded)) / loaded;
  return sinceFirstMs + left > plays && left > plays / 2 ? "slow" : null;
}

/** A whole segment may take two target durations (seconds, from the playlist). */
export function segmentLoadMs(targetDuration: number): number {
  return 2000 * targetDuration;
}

// Errors that another attempt can cure. hls.js by itself gives up on a broken connection (status 0) and on 404,
// but here both mean: this box is gone or has dropped the segment, and the front knows another. A refusal that
// persists is the front's own; then the segment is gone and playback goes on behind it.
function shouldRetry(
  retry: RetryConfig | null | undefined,
  count: number,
  isTimeout: boolean,
  response: LoaderResponse | undefined,
  usual: boolean,
): boolean {
  if (!retry || isTimeout || response?.code === undefined) return usual;
  const refused = response.code >= 400 && response.code < 500;
  return count < (refused ? Math.min(8, retry.maxNumRetry) : retry.maxNumRetry);
}

// The first attempts follow at once (10, 20, 40 ms), later ones up to a second apart, about seven seconds in all:
// long enough for a publisher that restarts, and no burst against one that is down. hls.js counts the failures of
// audio and video together, so each has half of these attempts when both are in trouble.
const segments: LoadPolicy = {
  default: {
    maxTimeToFirstByteMs: FIRST_BYTE_MS,
    maxLoadTimeMs: segmentLoadMs(6),
    timeoutRetry: { maxNumRetry: 10, retryDelayMs: 0, maxRetryDelayMs: 0 },
    errorRetry: { maxNumRetry: 13, retryDelayMs: 10, maxRetryDelayMs: 1000, shouldRetry },
  },
};

// Playlists come from the front alone; asking again helps only against lost connections and restarts.
const playlists: LoadPolicy = {
  default: {
    maxTimeToFirstByteMs: 3000,
    maxLoadTimeMs: 10_000,
    timeoutRetry: { maxNumRetry: 40, retryDelayMs: 0, maxRetryDelayMs: 0 },
    errorRetry: { maxNumRetry: 40, retryDelayMs: 250, maxRetryDelayMs: 1000, shouldRetry },
  },
};

// Whether there is a stream at all is the page's business: it asks the publisher before it tries again.
const manifest: LoadPolicy = {
  default: {
    maxTimeToFirstByteMs: 3000,
    maxLoadTimeMs: 10_000,
    timeoutRetry: { maxNumRetry: 1, retryDelayMs: 0, maxRetryDelayMs: 0 },
    errorRetry: { maxNumRetry: 1, retryDelayMs: 250, maxRetryDelayMs: 1000, shouldRetry },
  },
};

/** What differs from hls.js' defaults, freshly made: segment limits are adjusted while a stream plays. */
export function config(): Partial<HlsConfig> {
  return {
    liveSyncDurationCount: 3,
    backBufferLength: 60, // seconds; the default keeps all that was played, hours of it on a phone
    manifestLoadPolicy: structured(manifest),
    playlistLoadPolicy: structured(playlists),
    fragLoadPolicy: structured(segments),
  };
}

function structured(policy: LoadPolicy): LoadPolicy {
  return { default: { ...policy.default } };
}
