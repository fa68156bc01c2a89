import "./page.css";
import { hlsPlayer, hlsSupported } from "./hls";
import { nativePlayer, nativeSupported } from "./native";
import { open } from "./page";

if (hlsSupported()) {
  open(hlsPlayer, "");
} else if (nativeSupported(document.createElement("video"))) {
  open(nativePlayer, "This browser plays the stream by itself and does not tell where the bytes come from.");
} else {
  open(null, "This browser plays neither Media Source Extensions nor HLS. A current Firefox, Chrome, Edge or Safari does.");
}
