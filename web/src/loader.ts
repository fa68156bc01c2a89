import Hls, { type FragmentLoaderContext, type HlsConfig, type Loader, type LoaderCallbacks, type LoaderConfiguration } from "hls.js";
import { verdict, type Pace, type Patience } from "./policy";

const LOOK_MS = 100;

type MakeLoader = new (config: HlsConfig) => Loader<FragmentLoaderContext>;

/**
 * hls.js' own loader for segments, which also ends a load that stands still or comes too slowly. hls.js knows limits
 * for the first byte and for the whole alone; to it these are timeouts like any other, and it asks again at once.
 */
export function watchfulLoader(patience: Patience, paceOf: (type: string) => Pace): MakeLoader {
  return class extends (Hls.DefaultConfig.loader as unknown as MakeLoader) {
    #timer: ReturnType<typeof setInterval> | undefined;

    override load(context: FragmentLoaderContext, config: LoaderConfiguration, callbacks: LoaderCallbacks<FragmentLoaderContext>): void {
      const { frag, part } = context;
      const { stats } = this;
      const pace = paceOf(frag.type);
      const playsMs = frag.sn === "initSegment" ? 0 : 1000 * (part ?? frag).duration;
      const { silenceMs } = patience;
      let lastAt = 0;
      let loaded = 0;
      let given = false;

      super.load(context, config, {
        ...callbacks,
        onSuccess: (...answer) => {
          this.#rest();
          if (playsMs > 0) pace.loaded(stats.loading.end - stats.loading.first, playsMs);
          callbacks.onSuccess(...answer);
        },
        onError: (...answer) => {
          this.#rest();
          callbacks.onError(...answer);
        },
        onTimeout: (...answer) => {
          this.#rest();
          callbacks.onTimeout(...answer);
        },
        onAbort: (...answer) => (given ? callbacks.onTimeout(...answer) : callbacks.onAbort?.(...answer)),
      });
      this.#timer = setInterval(() => {
        const now = performance.now();
        if (stats.loading.first === 0) return; // hls.js waits for it
        if (stats.loaded > loaded) {
          loaded = stats.loaded;
          lastAt = now;
        }
        const judged = pace.judges(frag.sn, now) ? playsMs : 0;
        const progress = { sinceFirstMs: now - stats.loading.first, sinceLastMs: now - (lastAt || stats.loading.first), loaded, total: stats.total };
        const why = verdict(progress, silenceMs, judged);
        if (why === null) return;
        if (why === "slow") pace.gaveUp(frag.sn, now);
        given = true;
        config.timeout = Math.round(now - stats.loading.start); // hls.js tells it
        this.abort();
      }, LOOK_MS);
    }

    override abort(): void {
      this.#rest();
      super.abort();
    }

    override destroy(): void {
      this.#rest();
      super.destroy();
    }

    #rest(): void {
      clearInterval(this.#timer);
    }
  };
}
