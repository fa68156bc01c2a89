/** One attempt at playing one URL in a video element. */
export interface Player {
  /** Which player it is. */
  readonly kind: "hls.js" | "native";
  /** Seconds behind the live edge; null when unknown or not live. */
  latency(): number | null;
  /** Of what plays now, in bit/s; 0 unknown. */
  bitrate(): number;
  /** Lets go of the video element and of all requests. */
  destroy(): void;
}

/** What a player tells while it lives. */
export interface Events {
  /** A segment came from url, the address after redirects. Never called where the browser hides it. */
  segment(url: string, bytes: number): void;
  /** Something went wrong. Trouble says it for the viewer, "" when that adds nothing; fatal: the player had to start something over. */
  error(detail: string, trouble: string, fatal: boolean): void;
  /** It cannot go on and must be replaced. */
  failed(reason: string): void;
}

export type MakePlayer = (video: HTMLVideoElement, url: string, events: Events) => Player;
