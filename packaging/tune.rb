# A Homebrew formula, for a tap: brew install OWNER/tap/tune
# release.yml writes the address and the checksums of each release.
class Tune < Formula
  desc "Fine-tune an open-weight language model on one machine, from one binary"
  homepage "@HOMEPAGE@"
  version "@VERSION@"
  license any_of: ["MIT", "Apache-2.0"]

  on_macos do
    depends_on arch: :arm64
    url "@RELEASES@/tune-aarch64-macos.tar.gz"
    sha256 "@SHA256_AARCH64_MACOS@"
  end

  on_linux do
    on_intel do
      url "@RELEASES@/tune-x86_64-linux.tar.gz"
      sha256 "@SHA256_X86_64_LINUX@"
    end
    on_arm do
      url "@RELEASES@/tune-aarch64-linux.tar.gz"
      sha256 "@SHA256_AARCH64_LINUX@"
    end
  end

  def install
    bin.install "tune"
    generate_completions_from_executable(bin/"tune", "completions")
    system bin/"tune", "man", buildpath/"man"
    man1.install Dir["man/*.1"]
  end

  test do
    system bin/"tune", "cp", "quickstart", testpath/"demo"
    cd "demo" do
      system bin/"tune", "run", "quickstart.toml", "--set", "train.max_steps=2", "--set", "train.warmup_steps=0"
    end
    assert_path_exists testpath/"demo/runs/quickstart/adapter/adapter_model.safetensors"
  end
end
