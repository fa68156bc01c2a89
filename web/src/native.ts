import type { Events, Player } from "./player";

/** True when the browser itself plays HLS. */
export function nativeSupported(video: HTMLVideoElement): boolean {
  return video.canPlayType("application/vnd.apple.mpegurl") !== "";
}

/** Plays url with the browser's own HLS, which tells neither the hosts nor the sizes of segments. */
export function nativePlayer(video: HTMLVideoElement, url: string, events: Events): Player {
  const onError = () => {
    const reason = describe(video.error);
    events.error(video.error?.message || reason, reason, true);
    events.failed(reason);
  };
  video.addEventListener("error", onError);
  // Chromium follows a redirect to another host, as to a box, only for media that it may read.
  video.crossOrigin = "anonymous";
  video.src = url;
  return {
    kind: "native",
    latency() {
      const { seekable } = video;
      if (Number.isFinite(video.duration) || seekable.length === 0) return null;
      return seekable.end(seekable.length - 1) - video.currentTime;
    },
    bitrate: () => 0,
    destroy() {
      video.removeEventListener("error", onError);
      video.removeAttribute("src");
      video.load();
    },
  };
}

function describe(error: MediaError | null): string {
  switch (error?.code) {
    case MediaError.MEDIA_ERR_NETWORK:
      return "The stream cannot be loaded.";
    case MediaError.MEDIA_ERR_DECODE:
      return "The picture cannot be decoded.";
    default:
      return "The stream cannot be played.";
  }
}
